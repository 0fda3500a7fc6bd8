"""What the pages show of a run's record: derived once for a run that is over, and of a long one no more than a page can draw."""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from fedscale.lanes import Spent, spent
from fedscale.record import Phase, RoundRecord, RunRecord, finals
from fedscale_server.web.past import rounds
from fedscale_server.web.views import Share, Trouble, shares, troubles

if TYPE_CHECKING:
    from fedscale_server.answers import RunInfo
    from fedscale_server.coordinator import Coordinator

T = TypeVar("T")
POINTS, NEWEST = 500, 60  # rounds that a curve is drawn with, among them the newest ones without a gap
MOST_KEPT, TROUBLES_SHOWN = 200, 100


@dataclass(frozen=True, slots=True)
class Picture:
    """What the page of a run shows.

    Args:
        record: the run's; without its rounds where the run is over.
        troubles: its failures, the newest first, as many as are shown.
        shares: what each site contributed.
        finals: the last value of each metric.
        spent: where the time of each site went.
        curves: what ``curves_of`` says where the run is over.
    """

    record: RunRecord
    troubles: Sequence[Trouble]
    shares: Sequence[Share]
    finals: Mapping[tuple[Phase, str], float]
    spent: Mapping[str, Spent]
    curves: str = ""


class Gallery:
    """Pictures of runs; those of runs that are over, which change no more, are kept.

    Args:
        desk: knows the runs.
    """

    def __init__(self, desk: Coordinator) -> None:
        self._desk = desk
        self._kept: dict[str, Picture] = {}

    async def picture(self, run: str) -> tuple[RunInfo, Picture]:
        """A run, and what its page shows.

        Raises:
            NotFound: no such run.
        """
        info = await self._desk.run(run)
        if info.run not in self._kept:
            info, record = await self._desk.record(info.run)
            made = await asyncio.to_thread(_over if info.finished else picture_of, record)
            if not info.finished:
                return info, made
            self._kept[info.run] = made
            for old in list(self._kept)[:-MOST_KEPT]:
                del self._kept[old]
        return info, self._kept[info.run]

    async def curves(self, run: str, until: int = 0) -> str:
        """The curves of a run as JSON, see ``curves_of``; with ``until`` those of the last ``POINTS`` rounds up to that one, which are all drawn.

        Raises:
            NotFound: no such run.
        """
        info = await self._desk.run(run)
        if until:
            return await asyncio.to_thread(lambda: curves_of(rounds(self._desk.engine.store, info.run, until, POINTS)))
        if info.finished:
            return (await self.picture(info.run))[1].curves
        _, record = await self._desk.record(info.run)
        return await asyncio.to_thread(curves_of, record.rounds)


def picture_of(record: RunRecord) -> Picture:
    """What a page shows of a record."""
    took = spent((row.lanes, row.seconds) for row in record.rounds)
    return Picture(record, troubles(record)[:TROUBLES_SHOWN], shares(record), finals(record), took)


def _over(record: RunRecord) -> Picture:
    """The picture of a run that is over, to be kept: what it was made of is not."""
    return replace(picture_of(record), record=replace(record, rounds=()), curves=curves_of(record.rounds))


def curves_of(closed_rounds: Sequence[RoundRecord]) -> str:
    """The curves of rounds of a run as its page draws them.

    ``charts`` by phase and metric, with the value of all sites together and of each site that may be seen, round by round; the
    ``moved`` bytes of each round; and the last round of each phase that is ``closed``. Of a long run a curve has ``POINTS`` rounds.
    """
    rows: defaultdict[tuple[str, str], list[RoundRecord]] = defaultdict(list)
    moved: defaultdict[int, int] = defaultdict(int)
    closed: dict[str, int] = {}
    for row in closed_rounds:
        for name in dict.fromkeys((*row.metrics, *(name for values in row.sites.values() for name in values))):
            rows[row.phase, name].append(row)
        moved[row.number] += row.bytes_up + row.bytes_down
        closed[row.phase] = max(row.number, closed.get(row.phase, 0))
    charts = [_chart(phase, name, thinned(of_metric)) for (phase, name), of_metric in rows.items()]
    told = {"charts": charts, "moved": thinned(list(moved.items())), "closed": closed}
    return json.dumps(told, allow_nan=False, separators=(",", ":"))


def _chart(phase: str, name: str, rows: Sequence[RoundRecord]) -> dict[str, object]:
    """One metric of one phase; ``null`` where there is no number."""
    sites = dict.fromkeys(site for row in rows for site, values in row.sites.items() if name in values)
    return {
        "phase": phase,
        "name": name,
        "rounds": [row.number for row in rows],
        "all": [_short(row.metrics.get(name)) for row in rows],
        "sites": {site: [_short(row.sites.get(site, {}).get(name)) for row in rows] for site in sites},
    }


def thinned(rows: Sequence[T]) -> Sequence[T]:
    """At most ``POINTS`` of the rows, from the first one on evenly, and all of the ``NEWEST``."""
    if len(rows) <= POINTS:
        return rows
    older, few = len(rows) - NEWEST, POINTS - NEWEST
    return [*(rows[at * older // few] for at in range(few)), *rows[older:]]


def _short(value: float | None) -> float | None:
    """A number with as many digits as can be drawn and read."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
