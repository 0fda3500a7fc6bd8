"""A run and the world around it, driven by hand: the gate that checks answers, the journal, the checkpoints and a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedscale.errors import Cause, Failure, UpdateRejected
from fedscale.events import Answered, Arm, Assign, Commit, Effect, Event, Failed, Finish, Initialized, Outcome, Release, Roster, from_row, to_row
from fedscale.plan import Plan
from fedscale.ring import Words
from fedscale.round import Round
from fedscale.run import Run, model_digest
from fedscale.strategy import Strategy
from fedscale.task import Task
from fedscale.update import Update
from fedscale.vector import Schema, Tensor, Vector

SCHEMA = Schema((Tensor("layer.weight", (2, 2)), Tensor("layer.bias", (3,))))
BROKEN = Failure(Cause.CODE, "ValueError in the app", "app.py:7", "see the node's log")
NODES = ("ada", "ben", "cyd", "dee")


def plan_of(**tables: Any) -> Plan:
    """A plan with these tables beside its job."""
    job = {"name": "trial", **tables.pop("job", {})}
    return Plan.model_validate({"job": job, **tables})


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


@dataclass
class World:
    """What a server keeps for one run. ``send`` journals an event and handles it; a ``Commit`` takes a checkpoint."""

    plan: Plan
    strategy: Strategy | None = None
    schema: Schema = SCHEMA
    effects: list[Effect] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)
    payloads: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    checkpoint: tuple[int, str, dict[str, Vector]] | None = None

    def __post_init__(self) -> None:
        self.run = Run(self.plan, self.strategy or self.plan.strategy.build())
        self.effects = self.run.begin()

    @property
    def round(self) -> Round:
        """The open round."""
        assert self.run.round is not None
        return self.run.round

    def of(self, kind: type[Any]) -> list[Any]:
        """The effects of the last event that are of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def tasks(self) -> dict[str, Task]:
        return {task.node: task for effect in self.of(Assign) for task in effect.tasks}

    @property
    def timers(self) -> dict[str, float]:
        return {effect.timer: effect.seconds for effect in self.of(Arm)}

    @property
    def released(self) -> list[str]:
        return [effect.node for effect in self.of(Release)]

    @property
    def outcomes(self) -> list[Outcome | None]:
        return [effect.outcome for effect in self.of(Commit)]

    @property
    def finish(self) -> Finish | None:
        return next(iter(self.of(Finish)), None)

    def send(self, event: Event) -> list[Effect]:
        """Journal an event, handle it, and take the checkpoint it asks for."""
        kind, row = to_row(event)
        self.rows.append((kind, json.dumps(row)))
        if isinstance(event, Answered) and event.words is not None:
            self.payloads[event.digest] = event.words[:]
        if isinstance(event, Initialized) and event.model is not None:
            self.payloads[event.digest] = event.model
        self.effects = self.run.handle(event)
        if self.of(Commit):
            facts, vectors = self.run.snapshot()
            self.checkpoint = len(self.rows), json.dumps(facts), {name: v.copy() for name, v in vectors.items()}
        return self.effects

    def start(self, *nodes: str, model: Vector | None = None) -> list[Effect]:
        """Gather nodes and let the one that is asked make the first model."""
        self.send(Roster(nodes or NODES))
        return self.initialize(model)

    def initialize(self, model: Vector | None = None) -> list[Effect]:
        first = self.schema.zeros() if model is None else model
        return self.send(Initialized(self.run.asked, self.schema.to_json(), model_digest(first), first))

    def begin(self, *nodes: str) -> list[Effect]:
        """Open the first round of training with these nodes."""
        self.start(*nodes)
        return self.send(Roster(nodes or NODES))

    def words(self, delta: Vector | float = 0.0, weight: float = 10.0, **sums: float | Sequence[float]) -> Words:
        """A sound answer for the open round: metric sums are 0 unless given."""
        layout = self.round.terms.layout
        change = np.full(layout.size, delta, np.float32) if isinstance(delta, float | int) else delta
        plain: Mapping[str, Any] = {m.name: np.zeros(m.width) for m in layout.metrics}
        given = {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in sums.items()}
        return layout.encode(Update(change if layout.size else np.empty(0, np.float32), weight, {**plain, **given}))

    def submit(self, node: str, words: Words) -> list[Effect]:
        """The server's gate: an answer that fails a check becomes the node's failure."""
        try:
            self.round.terms.layout.check(words)
        except UpdateRejected as error:
            return self.send(Failed(node, Failure(Cause.REJECTED, error.what, where=error.where, hint=error.hint)))
        return self.send(Answered(node, f"{len(self.rows)}-{node}", words))

    def answer(self, node: str, delta: Vector | float = 0.0, weight: float = 10.0, **sums: float | Sequence[float]) -> list[Effect]:
        return self.submit(node, self.words(delta, weight, **sums))

    def everybody(self, delta: Vector | float = 0.0, weight: float = 10.0, **sums: float | Sequence[float]) -> list[Effect]:
        """All of the cohort who are still asked answer the same."""
        for node in list(self.tasks):
            if self.run.round is not None:
                self.answer(node, delta, weight, **sums)
        return self.effects

    def crash(self) -> World:
        """What a fresh process makes of the last checkpoint and the journal after it."""
        after, run = 0, Run(self.plan, self.run.strategy)
        if self.checkpoint is not None:
            after, facts, vectors = self.checkpoint
            run = Run.restore(self.plan, self.run.strategy, json.loads(facts), {name: v.copy() for name, v in vectors.items()})
        effects = run.begin()
        for kind, row in self.rows[after:]:
            effects = run.handle(self._revived(from_row(kind, json.loads(row)))) or effects
        other = World(self.plan, self.strategy, self.schema, [], list(self.rows), dict(self.payloads), self.checkpoint)
        other.run, other.effects = run, effects
        return other

    def _revived(self, event: Event) -> Event:
        if isinstance(event, Answered):
            return replace(event, words=self.payloads[event.digest])
        return replace(event, model=self.payloads[event.digest]) if isinstance(event, Initialized) else event


def bits(run: Run) -> dict[str, Any]:
    """Everything a run holds, comparable bit for bit."""
    current = run.round
    return {
        "facts": (run.phase, run.number, run.digest, run.asked, run.unable, run.status, run.reason, run.paused),
        "schema": run.schema and run.schema.to_json(),
        "model": run.model is not None and run.model.tobytes(),
        "slots": {name: slot.tobytes() for name, slot in run.slots.items()},
        "history": run.history,
        "round": current and (current.terms, current.places, current.status, current.failures, current.sites),
        "sum": current and (current.partial.words.tobytes(), current.partial.count),
    }
