"""What the page of a run shows of rounds that are long ago, a part of them at a time: the journal has them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedscale.lanes import Mark
from fedscale.learner import Phase
from fedscale.record import RoundRecord
from fedscale_server.logbook import NOTE, Entry
from fedscale_server.store.store import Store

# As many phases as the timeline of a page draws.
PHASES = 40


@dataclass(frozen=True, slots=True)
class Past:
    """A phase that is closed.

    Args:
        phase: what the sites were asked to do.
        number: the round.
        opened: when it did, in seconds of the epoch.
        end: when it closed.
        lanes: site to the marks of its lane, see ``fedscale.lanes``.
    """

    phase: str
    number: int
    opened: float
    end: float
    lanes: Mapping[str, Sequence[Mark]]


def phases(store: Store, run: str, until: int) -> list[Past]:
    """The last ``PHASES`` phases of a run up to round ``until``, in the order in which they opened."""
    opened: dict[tuple[str, int], float] = {}
    closed: list[Past] = []
    for line in _told(store, run, until, PHASES, ("opened", "closed")):
        where, at = (line.phase, line.number), line.at.timestamp()
        if line.kind == "opened":
            opened[where] = at
        else:
            began = opened.get(where, at)
            lanes = {site: tuple((stage, seconds) for stage, seconds in lane) for site, lane in line.detail.get("lanes", {}).items()}
            # A clock may have been set back.
            closed.append(Past(*where, began, max(at, began), lanes))
    return closed[-PHASES:]


def rounds(store: Store, run: str, until: int, most: int) -> list[RoundRecord]:
    """The closed phases of the last ``most`` rounds of a run up to round ``until``, with what curves are drawn from and nothing else."""
    return [
        RoundRecord(
            number=line.number,
            phase="train" if line.phase == Phase.TRAIN else "evaluate",
            answered=(),
            failures={},
            metrics=line.detail["metrics"],
            sites=line.detail["sites"],
            weight=0.0,
            seconds=0.0,
            bytes_up=line.detail["bytes_up"],
            bytes_down=line.detail["bytes_down"],
        )
        for line in _told(store, run, until, most, ("closed",))
    ]


def _told(store: Store, run: str, until: int, most: int, kinds: Sequence[str]) -> Iterable[Entry]:
    """What the journal says of the last rounds up to one, in order."""
    keys = [(phase, number) for number in range(max(until - most, 0) + 1, until + 1) for phase in Phase]
    return map(Entry.of, store.lines(run, [f"{NOTE}{kind}/{phase}/{number}" for phase, number in keys for kind in kinds]))
