"""What a simulation keeps of its course: closed rounds, durations and what would have travelled."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

import fedscale
from fedscale.events import Answered, Initialized, Outcome, Summed
from fedscale.record import JSON, RoundRecord, RunRecord
from fedscale.run import Run
from fedscale.task import Tasks
from fedscale_simulations.engines.desk import Answer


class Watch(Protocol):
    """Tells how much time has passed."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


@dataclass(slots=True)
class Books:
    """Closed rounds and totals.

    Args:
        clock: where durations come from: the machine's, or the world's where time is virtual.
        facts: what the record says besides, by key.
        rounds: the phases that are closed.
        seconds: time spent in them and before.
        up: bytes from the clients.
        down: bytes to the clients.
    """

    clock: Watch
    facts: dict[str, JSON] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    seconds: float = 0.0
    up: int = 0
    down: int = 0
    _since: float = 0.0
    _marks: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Begin to measure."""
        self._since, self._marks = self.clock.monotonic(), (self.up, self.down)

    @classmethod
    def after(cls, record: RunRecord, clock: Watch, facts: dict[str, JSON] | None = None) -> Books:
        """The books of a run that goes on."""
        return cls(clock, facts or {}, list(record.rounds), record.seconds, record.bytes_up, record.bytes_down)

    def sent(self, tasks: Tasks) -> None:
        """Clients were asked: each got the model, four bytes a coordinate, except when it is to make the first one."""
        self.down += 4 * tasks.schema.size * len(tasks) if tasks.schema else 0

    def received(self, answer: Answer, tasks: Tasks) -> None:
        """One of those asked answered, or several did."""
        if isinstance(answer, Answered):
            self.up += tasks.layout.nbytes
        elif isinstance(answer, Summed):
            self.up += tasks.layout.nbytes * len(answer.nodes)
        elif isinstance(answer, Initialized) and answer.model is not None:
            self.up += answer.model.nbytes

    def close(self, outcome: Outcome | None) -> RoundRecord | None:
        """Note the end of a phase; the first model has none to show."""
        now, (up, down) = self.clock.monotonic(), self._marks
        seconds, self._since, self._marks = now - self._since, now, (self.up, self.down)
        self.seconds += seconds
        if outcome is None:
            return None
        closed = RoundRecord(
            number=outcome.number,
            phase="train" if outcome.phase == "train" else "evaluate",
            answered=outcome.answered,
            failures=outcome.failures,
            metrics=outcome.metrics,
            sites=outcome.sites,
            weight=outcome.weight,
            seconds=seconds,
            bytes_up=self.up - up,
            bytes_down=self.down - down,
        )
        self.rounds.append(closed)
        return closed

    def record(self, run: Run, names: tuple[str, ...]) -> RunRecord:
        """The run so far, as it is kept."""
        return RunRecord(
            run=f"simulation-{run.plan.digest[:12]}",
            name=run.plan.job.name,
            status=run.status,
            reason=run.reason,
            plan_toml=run.plan.to_toml(),
            plan_hash=run.plan.digest,
            nodes=names,
            rounds=tuple(self.rounds),
            seconds=self.seconds,
            bytes_up=self.up,
            bytes_down=self.down,
            model_digest=run.digest,
            extra=self.facts
            | {
                "seeds": {"job": run.plan.job.seed},
                "versions": {"fedscale": fedscale.__version__, "python": platform.python_version(), "numpy": np.__version__},
            },
        )
