"""Run: model, optimizer state, history and the current round; exactly what a checkpoint and the journal hold.

``handle`` takes one event and returns effects. It has no clock, socket, thread, database or unseeded random number: the
server drives it from a journal, the simulator from a loop, tests from generated lists, and all get the same bits.

A run walks ``init -> (train -> evaluate)* -> finished``; between two rounds it gathers nodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fedscale import transform
from fedscale.aggregate import Aggregate
from fedscale.causes import listed
from fedscale.errors import Cause, Failure, PlanError, ProtocolError
from fedscale.events import (
    Arm,
    Assign,
    Commit,
    Effect,
    Event,
    Failed,
    Finish,
    Fired,
    Gather,
    Initialized,
    Lost,
    Outcome,
    Pause,
    Release,
    Resume,
    Roster,
    Stop,
    failure_of,
    model_bytes,
    outcome_of,
    schema_of,
)
from fedscale.learner import Phase
from fedscale.masked import Ground, MaskedSum, roster_of, terms_for
from fedscale.metrics import HIGHER_IS_BETTER
from fedscale.names import Names
from fedscale.optimizers import Slots
from fedscale.plan import Plan, require_linear
from fedscale.privacy.coordinator import Kept, resting
from fedscale.round import Round, Status, Terms
from fedscale.sampling import cohort
from fedscale.strategy import Strategy
from fedscale.task import for_first_model, layout_for
from fedscale.vector import Schema, Vector, finite

RUNNING = "running"


@dataclass(slots=True)
class Run:
    """The state of a run; make one with ``Run(plan, strategy)`` and send it the effects of ``begin``.

    Args:
        plan: the configuration.
        strategy: ``plan.strategy.build()``, or a strategy composed in Python.
    """

    plan: Plan
    strategy: Strategy
    schema: Schema | None = None
    model: Vector | None = None
    digest: str = ""
    slots: Slots = field(default_factory=dict)
    phase: Phase = Phase.INIT
    number: int = 0
    round: Round | None = None
    asked: str = ""
    unable: dict[str, Failure] = field(default_factory=dict)
    history: list[Outcome] = field(default_factory=list)
    status: str = RUNNING
    reason: str = ""
    paused: bool = False
    ground: Ground = field(default_factory=Ground)
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        """Refuse a strategy that was composed in Python and cannot do what the plan asks for.

        Raises:
            PlanError: it has no rounds, or cannot run under secure aggregation.
        """
        if self.strategy.led:
            raise PlanError("'led' has no rounds of ours", where="strategy.name", why="a program of yours leads it", hint="fedscale run lead DIR")
        if self.plan.secagg.enabled:
            require_linear(self.strategy)

    def begin(self) -> list[Effect]:
        """What the run wants at its start, and again after it was restored: the same requests."""
        if self.status != RUNNING:
            return []
        if self.round is not None:
            return self.round.requests()
        if self.asked:
            return self._ask(self.asked)
        return self._gather()

    def handle(self, event: Event) -> list[Effect]:
        """Move by one event; an event that does not fit the state changes nothing."""
        if self.status != RUNNING:
            return []
        if isinstance(event, Stop):
            return self._finish("failed" if event.failed else "stopped", event.reason)
        if isinstance(event, Pause | Resume):
            self.paused = isinstance(event, Pause)
            return [] if self.paused or self.round or self.asked else self._gather()
        if self.round is not None:
            return self._in_round(self.round, event)
        if self.asked:
            return self._in_init(event)
        if isinstance(event, Roster):
            return self._open(Names.of(event.nodes), event.keys)
        if isinstance(event, Fired) and event.timer == self._gathering() and not self.paused:
            rested = " that have not answered in this tree" if self.resting() else ""
            return self._finish("failed", f"fewer than {self._needed()} nodes{rested} were there within {self.plan.clients.deadline:g} s")
        return []

    def _gathering(self) -> str:
        """Name of the timer that limits the wait for nodes."""
        return f"{self.phase}/{self.number}/gather"

    def _needed(self) -> int:
        """Fewest nodes the next step can begin with."""
        clients = self.plan.clients
        return max(clients.min_per_round, clients.wait_for or 0) if self.phase is Phase.INIT else clients.min_per_round

    def _gather(self) -> list[Effect]:
        """Ask for nodes, unless paused."""
        return [] if self.paused else [Gather(self._needed()), Arm(self._gathering(), self.plan.clients.deadline)]

    def _open(self, nodes: Names, keys: Mapping[str, str]) -> list[Effect]:
        """Begin the next step with the nodes that are there."""
        if self.paused or len(nodes) < self._needed():
            return self._gather()
        if self.phase is Phase.INIT:
            able = nodes if not self.unable else [n for n in nodes if n not in self.unable]
            if not able:
                return self._finish("failed", f"no node could make the first model: {listed(self.unable)}")
            return self._ask(cohort(self.plan.job.seed, 0, able, 1)[0])
        if tired := self.resting():
            nodes = Names.of([node for node in nodes if node not in tired])
            if len(nodes) < self._needed():
                why = f"all but {len(nodes)} nodes have answered in this tree; lower privacy.tree_rounds or clients.select"
                return self._finish("failed", f"round {self.number}: {why}")
        terms = self._terms(nodes)
        try:
            self.round = Round.begin(terms, self.strategy.aggregator, self._masked(terms, keys))
        except (PlanError, ProtocolError) as error:
            return self._finish("failed", str(error))
        return self.round.requests()

    def resting(self) -> frozenset[str]:
        """Who must not be asked in this step."""
        if self.phase is not Phase.TRAIN:
            return frozenset()
        answered = ((outcome.number, outcome.answered) for outcome in self.history if outcome.phase == Phase.TRAIN)
        return resting(self.plan.privacy, self.plan.strategy.rounds, self.number, answered)

    def _masked(self, terms: Terms, keys: Mapping[str, str]) -> MaskedSum | None:
        """What a round under secure aggregation has besides; ``None`` for a sum in the clear.

        Raises:
            PlanError: the cohort is too small or its keys are not all there, or no parameters are safe for it.
            ProtocolError: two nodes have the same key.
        """
        if not (self.plan.secagg.enabled and self.ground.protocol):
            return None
        self.plan.secagg.parameters(len(terms.cohort))
        roster = roster_of(terms.cohort, keys)
        agreed = terms_for(self.ground, self.plan, terms.phase, terms.number, terms.layout, terms.schema, terms.model, roster)
        return MaskedSum.begin(agreed, roster, self.ground.core)

    def _terms(self, nodes: Names) -> Terms:
        """The terms of the next round with these nodes eligible."""
        plan, schema = self.plan, self._schema()
        clients = plan.clients.model_copy(update={"select": plan.evaluate.select}) if self.phase is Phase.EVALUATE else plan.clients
        # In an asynchronous run those that are there are the ones whose answers have arrived already.
        arrived = self.strategy.buffer > 0 and self.phase is Phase.TRAIN
        asked, target = (len(nodes), len(nodes)) if arrived else clients.asked(len(nodes))
        members = cohort(plan.job.seed, self.number, nodes, asked)
        layout = layout_for(plan, self.phase, schema.size, asked, self.kept.clip)
        # Under secure aggregation there are no single answers to show anything of.
        per_site = plan.evaluate.per_site and self.phase is Phase.EVALUATE and not plan.secagg.enabled
        shown = plan.evaluate.min_cell if per_site else 0
        quorum = min(clients.min_per_round, asked)
        # Where all answers weigh one, nobody knows of how many people they tell: those of a single site are its own.
        counted = self.phase is Phase.EVALUATE or (plan.privacy is None and plan.strategy.weighting == "examples")
        least = plan.evaluate.min_cell if counted else 2
        return Terms(self.number, self.phase, members, target, quorum, clients.deadline, clients.rejoin, layout, schema, self.digest, shown, least)

    def _schema(self) -> Schema:
        """The schema, which every round after the first step has."""
        if self.schema is None:
            raise ProtocolError("a round was opened before the first model was there")
        return self.schema

    def _ask(self, node: str) -> list[Effect]:
        """Ask one node for the first model."""
        self.asked = node
        return [Assign(for_first_model(self.plan, (node,))), Arm(self._asking(), self.plan.clients.deadline)]

    def _asking(self) -> str:
        """Name of the timer that limits the wait for the first model of one node."""
        return f"init/0/{self.asked}"

    def _in_init(self, event: Event) -> list[Effect]:
        """While one node makes the first model: take it, or go on to the next node."""
        failure: Failure | None = None
        if isinstance(event, Initialized) and event.node == self.asked and event.model is not None:
            return self._start(schema_of(event), event.model, event.digest)
        if isinstance(event, Failed) and event.node == self.asked:
            failure = event.failure
        elif isinstance(event, Lost) and event.node == self.asked:
            failure = Failure(Cause.LOST, "the connection to the node broke")
        elif isinstance(event, Fired) and event.timer == self._asking():
            failure = Failure(Cause.TIMEOUT, f"no first model within {self.plan.clients.deadline:g} s")
        if failure is None:
            return []
        node, self.asked = self.asked, ""
        self.unable[node] = failure
        return [Release(node, 0, Phase.INIT), *self._gather()]

    def _start(self, schema: Schema, model: Vector, digest: str) -> list[Effect]:
        """Take the first model and go to round 1."""
        self.schema, self.model, self.digest = schema, model, digest
        self.slots = self.strategy.optimizer.init(model)
        self.asked = ""
        if self.plan.privacy is not None and self.plan.privacy.mechanism == "ftrl":
            self.kept = Kept(secret=self.ground.secret)
        self.phase, self.number = Phase.TRAIN, 1
        return [Commit(None), *self._gather()]

    def _in_round(self, current: Round, event: Event) -> list[Effect]:
        """Hand an event to the round and, when it is over, go on."""
        effects = current.handle(event)
        if current.status is Status.OPEN:
            return effects
        self.round = None
        if current.status is Status.FAILED:
            return effects + self._finish("failed", current.reason())
        aggregate, outcome = current.result()
        if self.phase is Phase.TRAIN and self.model is not None:
            aggregate, outcome = self._private(current.terms, aggregate, outcome)
            delta = transform.decode(self.strategy.transforms, aggregate).delta
            # What overflows here is found not to be finite below.
            with np.errstate(over="ignore", invalid="ignore"):
                self.model, self.slots = self.strategy.optimizer.step(delta, self.model, self.slots, self.number)
            self.digest = model_digest(self.model)
        self.history.append(outcome)
        return [*effects, *self._advance(outcome)]

    def _private(self, terms: Terms, aggregate: Aggregate, outcome: Outcome) -> tuple[Aggregate, Outcome]:
        """A round's sum as the model may see it, and its facts with the clip it had, where that moves."""
        if self.plan.privacy is None:
            return aggregate, outcome
        planned, grid = self.plan.strategy.rounds, 2.0**-terms.layout.format.exponent
        delta, self.kept = self.kept.opened(self.plan.privacy, planned, self.number, aggregate.delta, aggregate.weight, grid)
        shown = {"clip": terms.layout.clip} if terms.layout.clip else {}
        return replace(aggregate, delta=delta), replace(outcome, metrics={**outcome.metrics, **shown})

    def _advance(self, outcome: Outcome) -> list[Effect]:
        """Choose the next step: evaluate, train or finish."""
        plan = self.plan
        every = plan.evaluate.every
        if self.phase is Phase.TRAIN and self.model is not None and not finite(self.model):
            return [Commit(outcome), *self._finish("failed", f"the model diverged in round {self.number}; lower the learning rates")]
        if self.phase is Phase.TRAIN and every and (self.number % every == 0 or self.number == plan.strategy.rounds):
            self.phase = Phase.EVALUATE
        elif self.number == plan.strategy.rounds:
            return [Commit(outcome), *self._finish("completed", "")]
        elif self.phase is Phase.EVALUATE and self._stale():
            return [Commit(outcome), *self._finish("completed", f"no better {plan.evaluate.monitor} in {plan.evaluate.patience} evaluations")]
        else:
            self.phase, self.number = Phase.TRAIN, self.number + 1
        return [Commit(outcome), *self._gather()]

    def _stale(self) -> bool:
        """Whether the monitored metric has not improved for ``patience`` evaluations."""
        watched = self.plan.evaluate
        sign = 1.0 if watched.monitor in HIGHER_IS_BETTER else -1.0
        values = [sign * o.metrics[watched.monitor] for o in self.history if o.phase == Phase.EVALUATE and watched.monitor in o.metrics]
        return bool(watched.patience) and len(values) > watched.patience and max(values[-watched.patience :]) <= max(values[: -watched.patience])

    def _finish(self, status: str, reason: str) -> list[Effect]:
        """End the run, releasing whoever is still at work."""
        busy: list[Effect] = []
        if self.round is not None:
            asked = [effect.tasks for effect in self.round.requests() if isinstance(effect, Assign)]
            busy = [Release(node, self.number, self.phase) for tasks in asked for node in tasks.nodes]
        elif self.asked:
            busy = [Release(self.asked, 0, Phase.INIT)]
        self.round, self.asked = None, ""
        self.status, self.reason = status, reason
        return [*busy, Finish(status, reason)]

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Vector]]:
        """The run between two rounds as JSON and named vectors; ``restore`` is its inverse.

        Raises:
            ProtocolError: a round is open; checkpoints are taken when a ``Commit`` is asked for.
        """
        if self.round is not None:
            raise ProtocolError("a checkpoint was asked for while a round is open")
        facts = {
            "phase": str(self.phase),
            "number": self.number,
            "schema": self.schema.to_json() if self.schema else "",
            "digest": self.digest,
            "unable": {n: asdict(f) for n, f in self.unable.items()},
            "history": [asdict(o) for o in self.history],
            "status": self.status,
            "reason": self.reason,
            "paused": self.paused,
            "clip": self.kept.clip,
            "secret": self.kept.secret.hex(),
        }
        vectors = {} if self.model is None else {"model": self.model, **{f"slot/{n}": v for n, v in self.slots.items()}}
        return facts, vectors

    def hold(self, vectors: Mapping[str, Vector]) -> None:
        """Go on with the vectors of ``snapshot`` from where they are kept now, so that nobody holds them twice."""
        self.model = vectors.get("model")
        self.slots = {n.removeprefix("slot/"): v for n, v in vectors.items() if n.startswith("slot/")}

    @classmethod
    def restore(cls, plan: Plan, strategy: Strategy, facts: dict[str, Any], vectors: dict[str, Vector], ground: Ground | None = None) -> Run:
        """A run as ``snapshot`` saw it; send the effects of ``begin`` again."""
        return cls(
            plan,
            strategy,
            schema=Schema.from_json(facts["schema"]) if facts["schema"] else None,
            model=vectors.get("model"),
            digest=facts["digest"],
            slots={n.removeprefix("slot/"): v for n, v in vectors.items() if n.startswith("slot/")},
            phase=Phase(facts["phase"]),
            number=facts["number"],
            unable={n: failure_of(f) for n, f in facts["unable"].items()},
            history=[outcome_of(o) for o in facts["history"]],
            status=facts["status"],
            reason=facts["reason"],
            paused=facts["paused"],
            kept=Kept(facts.get("clip", 0.0), bytes.fromhex(facts.get("secret", ""))),
            ground=ground or Ground(),
        )


def model_digest(model: Vector) -> str:
    """SHA-256 over a model's bytes, in hex: its name in every store."""
    return hashlib.sha256(model_bytes(model)).hexdigest()
