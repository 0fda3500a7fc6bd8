"""What each site of a round does, moment by moment: the lanes of a run's timeline.

A lane is a list of marks ``(stage, seconds since the round opened)``; a stage lasts until the next mark, the last one until
the round closes. The same stage twice in a row is a retry of it. Where the time comes from is for others to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

Mark: TypeAlias = tuple[str, float]

WAIT, DOWNLOAD, MASK, UPLOAD, UNMASK, AWAY, FAILED = "wait", "download", "mask", "upload", "unmask", "away", "failed"
# In the order in which a site meets them, each with what people read.
STAGES: Mapping[str, str] = {
    WAIT: "waits",
    DOWNLOAD: "downloads",
    "train": "trains",
    "evaluate": "evaluates",
    MASK: "masks",
    UPLOAD: "uploads",
    UNMASK: "unmasks",
    AWAY: "connection lost",
    FAILED: "failed",
}
AFTER = {"answered": WAIT, "failed": FAILED, "lost": AWAY}
# A site says itself what it does: one that changes its mind without end is not written down without end.
MOST_MARKS = 64


@dataclass(slots=True)
class Lanes:
    """The lanes of one round.

    Args:
        opened: when it did, in seconds of any clock.
        marks: those of each site of the cohort.
    """

    opened: float = 0.0
    marks: dict[str, list[Mark]] = field(default_factory=dict)

    @classmethod
    def of(cls, cohort: Iterable[str], at: float) -> Lanes:
        """A round that has just opened: everybody waits for the task."""
        return cls(at, {site: [(WAIT, 0.0)] for site in cohort})

    def take(self, kind: str, site: str, at: float) -> None:
        """Note an event of the round by its kind; those that put nobody elsewhere change nothing."""
        stages = [stage for stage, _ in self.marks.get(site, ())]
        if kind == "returned":
            self.mark(site, next((stage for stage in reversed(stages) if stage != AWAY), WAIT), at)
        elif kind in AFTER:
            self.mark(site, AFTER[kind], at)
        elif kind == "spoke" and stages[-1:] == [UNMASK]:
            self.mark(site, WAIT, at)

    def mark(self, site: str, stage: str, at: float, *, again: bool = False) -> bool:
        """A site of the round is at another stage, or at the same one ``again``; whether that is news. A site that has failed is done."""
        lane = self.marks.get(site)
        if lane is None or lane[-1][0] == FAILED or (lane[-1][0] == stage and not again):
            return False
        if len(lane) >= MOST_MARKS and stage != FAILED:
            return False
        # A clock may have been set back.
        lane.append((stage, round(max(at - self.opened, lane[-1][1]), 3)))
        return True

    def drawn(self) -> dict[str, tuple[Mark, ...]]:
        """The marks so far, as they are kept."""
        return {site: tuple(lane) for site, lane in self.marks.items()}


def spans(lane: Sequence[Mark], end: float) -> list[tuple[str, float, float]]:
    """Stage, beginning and end of each part of a lane whose round closed, or has come, at ``end``; what failed lasts no time."""
    ends = [*(at for _, at in lane[1:]), end][: len(lane)]
    return [(stage, at, at if stage == FAILED else max(until, at)) for (stage, at), until in zip(lane, ends, strict=True)]


def retries(lane: Sequence[Mark]) -> int:
    """How often a stage was begun once more."""
    return sum(stage == before for (before, _), (stage, _) in pairwise(lane))


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a site's time went: seconds by stage, retries, and how often it was away or failed."""

    seconds: Mapping[str, float]
    retries: int
    away: int
    failed: int


def spent(rounds: Iterable[tuple[Mapping[str, Sequence[Mark]], float]]) -> dict[str, Spent]:
    """Where the time of each site went in rounds of lanes and their seconds."""
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(STAGES, 0.0))
    lanes: dict[str, list[Sequence[Mark]]] = defaultdict(list)
    for marks, end in rounds:
        for site, lane in marks.items():
            lanes[site].append(lane)
            for stage, begin, until in spans(lane, end):
                # A record of a later release may have stages that are not known here.
                seconds[site][stage] = seconds[site].get(stage, 0.0) + until - begin
    stages = {site: [stage for lane in of_site for stage, _ in lane] for site, of_site in lanes.items()}
    return {s: Spent(seconds[s], sum(map(retries, lanes[s])), stages[s].count(AWAY), stages[s].count(FAILED)) for s in lanes}
