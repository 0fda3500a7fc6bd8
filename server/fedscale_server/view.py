"""A run as a person follows it: events in, lines and a fraction out. No clock, no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedscale.cli.rounds import failure, fraction, round_line
from fedscale.lanes import Lanes
from fedscale_server.answers import Event

BAD, GOOD = "red", "green"


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
        phase: of the step under way.
        number: its round, 0 before the first.
        waiting: what the run waits for while no round is open.
        sites: the cohort of the open round, and how far each site is, in [0, 1].
        named: whose failure in this round has been told.
        lanes: what each site of the open round, or of the last one, has been doing.
    """

    rounds: int
    phase: str = ""
    number: int = 0
    waiting: str = "starting"
    sites: dict[str, float] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    lanes: Lanes = field(default_factory=Lanes)

    def take(self, event: Event) -> list[Line]:
        """Note an event; returns the lines it is worth."""
        detail = event.detail
        self.lanes = _lanes(self.lanes, event)
        match event.kind:
            case "gathering":
                self.waiting = f"waiting for nodes, {len(detail.get('there', ()))} of {detail.get('needed', 1)} there"
            case "roster" if event.phase == "init":
                self.waiting = "waiting for the first model"
            case "opened":
                self.phase, self.number, self.waiting, self.named = event.phase, event.number, "", set()
                self.sites = dict.fromkeys(detail.get("cohort", ()), 0.0)
            case "posted":
                self._posted(event)
            case "progress":
                self._reach(event.node, min(float(detail.get("fraction", 0.0)), 0.99))
            case "answered":
                self._reach(event.node, 1.0)
            case "closed":
                return self._closed(event)
            case "finished":
                good = detail.get("status") == "completed"
                reason = f": {detail['reason']}" if detail.get("reason") else ""
                return [Line(f"{detail.get('status', 'over')}{reason}", GOOD if good else BAD)]
            case _:
                return self._told(event)
        return []

    def _posted(self, event: Event) -> None:
        """A leader asks a site for something; a round of a led run opens with its first message."""
        if (event.phase, event.number) != (self.phase, self.number):
            self.phase, self.number, self.waiting, self.named, self.sites = event.phase, event.number, "", set(), {}
        self.sites[event.node] = 0.0

    def _reach(self, node: str, done: float) -> None:
        if node in self.sites:
            self.sites[node] = max(self.sites[node], done)

    def _told(self, event: Event) -> list[Line]:
        """The line of an event between the opening and the closing of a round."""
        at, node = self._place(event), event.node
        match event.kind:
            case "initialized":
                return [Line(f"{node} made the first model")]
            case "failed":
                self.named.add(node)
                return [Line(f"{at:<15} {node} failed: {failure(event.detail)}", BAD)]
            case "lost":
                return [Line(f"{at:<15} {node}: the connection broke", BAD)]
            case "returned":
                return [Line(f"{at:<15} {node} is back")]
            case "pause" | "resume":
                return [Line(f"the run is {event.kind}d")]
        return []

    def _closed(self, event: Event) -> list[Line]:
        """A round in one line, and above it whoever failed without a word."""
        failures: Mapping[str, Mapping[str, Any]] = event.detail.get("failures", {})
        at = self._place(event)
        late = [Line(f"{at:<15} {node} failed: {failure(what)}", BAD) for node, what in failures.items() if node not in self.named]
        return [*late, Line(round_line(at, event.detail))]

    def _place(self, event: Event) -> str:
        return f"{event.phase} {event.number}/{self.rounds}"

    @property
    def fraction(self) -> float:
        """How much of the run is done, in [0, 1]."""
        within = sum(self.sites.values()) / len(self.sites) if self.sites else 0.0
        return fraction(self.number, self.rounds, self.phase, within)

    @property
    def text(self) -> str:
        """What is going on now."""
        done = sum(reached == 1.0 for reached in self.sites.values())
        return self.waiting or f"{self.phase} {self.number}/{self.rounds}, {done} of {len(self.sites)} nodes"


def _lanes(lanes: Lanes, event: Event) -> Lanes:
    """The lanes after an event: those of a round that opens, those that a watcher who comes later is told at once, or the same with a mark more."""
    match event.kind:
        case "opened":
            return Lanes.of(event.detail.get("cohort", ()), event.at)
        case "lanes":
            return Lanes(event.at, {site: [(stage, at) for stage, at in lane] for site, lane in event.detail["lanes"].items()})
        case "stage":
            lanes.mark(event.node, event.detail["stage"], event.at, again=event.detail["again"])
        case _:
            lanes.take(event.kind, event.node, event.at)
    return lanes
