"""A run as a person follows it: events in, lines and a fraction out. No clock, no terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from fedscale import console
from fedscale.record import RunRecord, finals, participants
from fedscale.report.units import data_size, duration, number
from fedscale_server.answers import Event

TRAINING_SHARE = 0.75
BAD, GOOD = "red", "green"
ALL_SITES = "all sites"


@dataclass(frozen=True, slots=True)
class Line:
    """Something worth a line, and the colour it is shown in."""

    text: str
    style: str = ""


@dataclass(slots=True)
class View:
    """What is known of a run so far.

    Args:
        rounds: how many the plan asks for.
    """

    rounds: int
    phase: str = ""
    number: int = 0
    waiting: str = "starting"
    sites: dict[str, float] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)

    def take(self, event: Event) -> list[Line]:
        """Note an event; returns the lines it is worth."""
        detail = event.detail
        match event.kind:
            case "gathering":
                there, needed = detail.get("there", ()), detail.get("needed", 1)
                self.waiting = f"waiting for nodes, {len(there)} of {needed} there"
            case "opened":
                self.phase, self.number, self.waiting, self.named = event.phase, event.number, "", set()
                self.sites = dict.fromkeys(detail.get("cohort", ()), 0.0)
            case "progress":
                self._reach(event.node, min(float(detail.get("fraction", 0.0)), 0.99))
            case "answered":
                self._reach(event.node, 1.0)
            case _:
                return self._told(event)
        return []

    def _reach(self, node: str, fraction: float) -> None:
        if node in self.sites:
            self.sites[node] = max(self.sites[node], fraction)

    def _told(self, event: Event) -> list[Line]:
        """The lines of an event that is worth one."""
        at, node = f"{event.phase} {event.number}/{self.rounds}", event.node
        match event.kind:
            case "initialized":
                return [Line(f"{node} made the first model")]
            case "failed":
                self.named.add(node)
                return [Line(f"{at}  {node} failed: {failure(event.detail)}", BAD)]
            case "lost" | "returned":
                return [Line(f"{at}  {node}: the connection broke", BAD) if event.kind == "lost" else Line(f"{at}  {node} is back")]
            case "pause" | "resume":
                return [Line(f"the run is {event.kind}d")]
            case "closed":
                return self._closed(event)
            case "finished":
                reason = event.detail.get("reason")
                return [Line(f"{event.detail.get('status', 'over')}{f': {reason}' if reason else ''}", GOOD if completed(event) else BAD)]
        return []

    def _closed(self, event: Event) -> list[Line]:
        """A round in one line, and above it whoever failed without a word."""
        detail = event.detail
        failures: Mapping[str, Mapping[str, Any]] = detail.get("failures", {})
        at = f"{event.phase} {event.number}/{self.rounds}"
        late = [Line(f"{at}  {node} failed: {failure(what)}", BAD) for node, what in failures.items() if node not in self.named]
        answered, metrics = detail.get("answered", ()), detail.get("metrics", {})
        values = "  ".join(f"{name} {number(value)}" for name, value in metrics.items())
        moved = data_size(detail.get("bytes_up", 0) + detail.get("bytes_down", 0))
        counts = f"{len(answered)} of {len(answered) + len(failures)} nodes"
        return [*late, Line(f"{at}  {counts}  {values}  {duration(detail.get('seconds', 0.0))}  {moved}")]

    @property
    def fraction(self) -> float:
        """How much of the run is done, in [0, 1]; a round's training counts three times its evaluation."""
        if not self.number:
            return 0.0
        within = sum(self.sites.values()) / len(self.sites) if self.sites else 0.0
        part = within * TRAINING_SHARE if self.phase == "train" else TRAINING_SHARE + within * (1 - TRAINING_SHARE)
        return (self.number - 1 + part) / max(self.rounds, 1)

    @property
    def text(self) -> str:
        """What is going on now."""
        if self.waiting:
            return self.waiting
        done = sum(fraction == 1.0 for fraction in self.sites.values())
        return f"{self.phase} {self.number}/{self.rounds}, {done} of {len(self.sites)} nodes"


def completed(event: Event) -> bool:
    """Whether a run reached its goal."""
    return event.detail.get("status") == "completed"


def failure(detail: Mapping[str, Any]) -> str:
    """``cause: where: what; hint``."""
    place = f"{detail['where']}: " if detail.get("where") else ""
    hint = f"; {detail['hint']}" if detail.get("hint") else ""
    return f"{detail.get('cause', 'unknown')}: {place}{detail.get('what', '')}{hint}"


def results(record: RunRecord) -> Table:
    """The last metrics of all sites together and of each where the plan shows them, with how often it answered and failed."""
    last = finals(record)
    answered = Counter(node for row in record.rounds for node in row.answered)
    failed = Counter(node for row in record.rounds for node in row.failures)
    single = {(row.phase, site, name): value for row in record.rounds for site, values in row.sites.items() for name, value in values.items()}
    rows: list[Sequence[object]] = [(ALL_SITES, "", "", *map(number, last.values()))]
    for site in participants(record):
        values = (single.get((phase, site, name)) for phase, name in last)
        rows.append((site, answered[site], failed[site], *("" if value is None else number(value) for value in values)))
    names = (f">{name} ({'held out' if phase == 'evaluate' else 'training'})" for phase, name in last)
    return console.table(("site", ">answers", ">failures", *names), rows)


def totals(record: RunRecord) -> str:
    """Status, rounds, time and bytes in one line."""
    rounds = len({row.number for row in record.rounds})
    moved = f"{data_size(record.bytes_up)} from the nodes, {data_size(record.bytes_down)} to them"
    return f"run {record.run} {record.status} after {rounds} rounds in {duration(record.seconds)}; {moved}"
