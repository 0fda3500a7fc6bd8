"""What a Flower app's messages amount to: rounds, failures, metrics and bytes, as any run has them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

import fedscale
from fedscale.errors import Cause, Failure
from fedscale.flower import records
from fedscale.flower.directory import Directory
from fedscale.flower.nodes import Nodes
from fedscale.flower.records import Mail
from fedscale.flower.rounds import Rounds
from fedscale.flower.witness import Outcome
from fedscale.record import PHASES, RoundRecord, RunRecord
from fedscale.vector import Arrays
from fedscale_simulations.failures import failure_of
from fedscale_simulations.result import Progress


@dataclass(slots=True)
class _Page:
    """A phase of a round under way."""

    phase: str
    number: int
    began: float
    ended: float
    asked: set[str] = field(default_factory=set)
    sites: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    up: int = 0
    down: int = 0

    def take(self, name: str, reply: Mail | Exception) -> None:
        """Note what a client replied, or that its code raised."""
        self.ended = time.monotonic()
        if isinstance(reply, Exception):
            self.failures[name] = failure_of(reply)
        elif reply.has_error():
            self.failures[name] = Failure(Cause.CODE, str(reply.error.reason))
        else:
            self.weights[name], self.sites[name] = records.measured(reply.content)
            self.up += records.nbytes(reply.content)

    def give_up(self, name: str) -> None:
        """Note that a client's reply came too late, or that it was not even asked in time."""
        self.sites.pop(name, None)
        self.weights.pop(name, None)
        self.failures[name] = Failure(Cause.TIMEOUT, "no reply within the ServerApp's timeout")

    def record(self) -> RoundRecord:
        """What is kept of it; metrics are means over the examples."""
        totals: dict[str, list[float]] = {}
        for node, values in self.sites.items():
            for name, value in values.items():
                total = totals.setdefault(name, [0.0, 0.0])
                total[0], total[1] = total[0] + self.weights[node] * value, total[1] + self.weights[node]
        return RoundRecord(
            number=self.number,
            phase="train" if self.phase == "train" else "evaluate",
            answered=tuple(sorted(self.sites)),
            failures=self.failures,
            metrics={name: total / weight for name, (total, weight) in totals.items() if weight > 0},
            sites={name: self.sites[name] for name in sorted(self.sites)},
            weight=sum(self.weights.values()),
            seconds=self.ended - self.began,
            bytes_up=self.up,
            bytes_down=self.down,
        )


class Diary:
    """Writes down what the messages of a run amount to.

    Args:
        nodes: who is asked.
        rounds: how many rounds there will be, where the app's run config says so; 0 where nobody knows.
        on_progress: called after every reply and every closed phase.
    """

    def __init__(self, nodes: Nodes, rounds: int, on_progress: Callable[[Progress], None]) -> None:
        self._nodes, self._rounds, self._tell = nodes, rounds, on_progress
        self._began, self._lock = time.monotonic(), threading.Lock()
        self._page: _Page | None = None
        self._count = Rounds()
        self._closed: list[RoundRecord] = []
        self._up = self._down = 0

    def asked(self, messages: list[Mail]) -> None:
        """These were sent."""
        for message in messages:
            size = records.nbytes(message.content)
            with self._lock:
                self._down += size
                page = self._page_of(message)
                if page is not None:
                    page.asked.add(self._name(message))
                    page.down += size

    def answered(self, message: Mail, reply: Mail | Exception) -> None:
        """A client replied, or its code raised."""
        name = self._name(message)
        with self._lock:
            self._up += 0 if isinstance(reply, Exception) or reply.has_error() else records.nbytes(reply.content)
            page = self._page
            if page is not None and page.phase == records.phase_of(message) and name in page.asked:
                page.take(name, reply)
                self._progress(page)

    def late(self, message: Mail) -> None:
        """A message was given up when the ServerApp's time was over."""
        with self._lock:
            if self._page is not None and self._name(message) in self._page.asked:
                self._page.give_up(self._name(message))

    def close(self, directory: Directory, outcome: Outcome, reason: str) -> RunRecord:
        """The run, as it ended; where the app's strategy made metrics of its own, they are the ones that count."""
        with self._lock:
            self._turn()
        # Of two pages of a round, the one of what the app began with comes first.
        rounds = [replace(row, metrics=row.metrics | outcome.metrics.pop((row.phase, row.number), {})) for row in self._closed[::-1]][::-1]
        rounds += [_of_server(phase, number, metrics) for (phase, number), metrics in outcome.metrics.items() if number and metrics]
        text = directory.to_toml()
        digest = hashlib.sha256(text.encode()).hexdigest()
        return RunRecord(
            run=f"simulation-{digest[:12]}",
            name=directory.name,
            status="failed" if reason else "completed",
            reason=reason,
            plan_toml=text,
            plan_hash=digest,
            nodes=tuple(self._nodes.names),
            rounds=tuple(sorted(rounds, key=lambda row: (row.number, row.phase == "evaluate"))),
            seconds=time.monotonic() - self._began,
            bytes_up=self._up,
            bytes_down=self._down,
            model_digest=_digest(outcome.arrays),
            extra={"population": {"clients": directory.nodes}, "versions": _versions()},
        )

    def _name(self, message: Mail) -> str:
        return self._nodes.name(int(message.metadata.dst_node_id))

    def _page_of(self, message: Mail) -> _Page | None:
        """The page of a message that is about to be sent, turned where it begins a new one; ``None`` for a query."""
        phase, number = self._count.of(self._name(message), message)
        if phase not in PHASES:
            return None
        page = self._page
        if page is None or (page.phase, page.number) != (phase, number):
            self._turn()
            now = time.monotonic()
            page = self._page = _Page(phase, number, now, now)
        return page

    def _turn(self) -> None:
        """Close the page."""
        page, self._page = self._page, None
        if page is not None:
            self._closed.append(page.record())
            self._progress(page, self._closed[-1])

    def _progress(self, page: _Page, closed: RoundRecord | None = None) -> None:
        done = len(page.sites) + len(page.failures)
        self._tell(Progress(page.number, max(self._rounds, page.number), page.phase, done, len(page.asked), closed))


def _of_server(phase: str, number: int, metrics: dict[str, float]) -> RoundRecord:
    """What a ServerApp measured by itself in a round in which no client was asked to."""
    return RoundRecord(number, "train" if phase == "train" else "evaluate", (), {}, metrics, {}, 0.0, 0.0, 0, 0)


def _versions() -> dict[str, str]:
    """What somebody else needs to repeat the run."""
    ours = {"fedscale": fedscale.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return {**ours, "flwr": importlib.metadata.version("flwr")}


def _digest(arrays: Arrays) -> str:
    """SHA-256 over names and bytes of a model; empty where there is none."""
    if not arrays:
        return ""
    total = hashlib.sha256()
    for name, array in arrays.items():
        total.update(name.encode() + b"\0" + np.asarray(array, order="C").tobytes())
    return total.hexdigest()
