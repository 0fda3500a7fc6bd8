"""Counts of what has happened to runs since the server was started, for its metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedscale_server.logbook import Entry


@dataclass(slots=True)
class Tally:
    """What ``take`` was told, added up.

    Args:
        rounds: closed phases of rounds, by phase.
        seconds: how long they took, by phase.
        answers: answers that were counted, by phase.
        failures: failures, by cause.
        lost: connections that broke in a round.
        ended: runs that are over, by status.
        bytes_up: bytes from nodes in closed rounds.
        bytes_down: bytes to nodes in closed rounds.
    """

    rounds: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def take(self, entry: Entry) -> None:
        """Note a line of a run's journal."""
        if entry.kind == "closed":
            self._closed(entry)
        elif entry.kind == "lost":
            self.lost += 1
        elif entry.kind == "finished":
            self.ended[entry.detail["status"]] += 1

    def _closed(self, entry: Entry) -> None:
        """A closed phase tells of all that happened in it; failures count here, once for each node and phase."""
        detail, phase = entry.detail, entry.phase
        self.rounds[phase] += 1
        self.seconds[phase] = self.seconds.get(phase, 0.0) + detail["seconds"]
        self.answers[phase] += len(detail["answered"])
        self.failures.update(str(failure["cause"]) for failure in detail["failures"].values())
        self.bytes_up += detail["bytes_up"]
        self.bytes_down += detail["bytes_down"]
