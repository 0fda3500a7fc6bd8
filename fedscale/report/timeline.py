"""The timeline of a run: a lane for each site, drawn by what it did in the last rounds, and the same in numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from fedscale.lanes import AWAY, DOWNLOAD, FAILED, MASK, STAGES, UNMASK, UPLOAD, WAIT, Spent, spans, spent
from fedscale.record import RoundRecord, RunRecord
from fedscale.report.figures import GRID_ROWS, figure
from fedscale.report.markup import Markup, table, tag
from fedscale.report.svg import GRID_LETTERS, Scale
from fedscale.report.units import duration, shortened

SHOWN = 30
WIDTH, LABEL, RIGHT, LANE, THINNEST = 1000.0, 170.0, 996.0, 20.0, 1.0
ROOM, TOTAL, KEY = 34.0, 90.0, 24.0
# Top and bottom of a part within its lane: each stage has a height of its own, so that nobody needs to tell colours apart.
HEIGHTS = {
    WAIT: (9.0, 11.0),
    DOWNLOAD: (10.0, 18.0),
    "train": (2.0, 18.0),
    "evaluate": (2.0, 18.0),
    MASK: (7.0, 13.0),
    UPLOAD: (2.0, 10.0),
    UNMASK: (5.0, 15.0),
    AWAY: (3.0, 17.0),
}
AGAIN = "again"


def timeline(record: RunRecord) -> list[Markup]:
    """The figure and its numbers; nothing for a run whose rounds have no lanes."""
    rounds = [row for row in record.rounds if row.lanes][-SHOWN:]
    if not rounds:
        return []
    sites = list(dict.fromkeys(site for row in rounds for site in row.lanes))
    parts = {site: _parts(rounds, site) for site in sites[:GRID_ROWS]}
    notes = [f"The last {SHOWN} phases."] if len(rounds) == SHOWN else []
    notes += [f"The first {GRID_ROWS} of {len(sites)} sites."] if len(sites) > GRID_ROWS else []
    caption = tag("figcaption", " ".join(notes)) if notes else ""
    drawing = tag("div", _drawing(rounds, parts), class_="scroll")
    return [figure("What each site did, second by second", drawing, _key(parts), caption, style="wide"), _numbers(record)]


def _parts(rounds: Sequence[RoundRecord], site: str) -> dict[str, list[tuple[float, float]]]:
    """Beginning and end of all that a site did, by stage, one round behind the other; and of what it tried again."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row, begin in zip(rounds, _begins(rounds), strict=False):
        before = ""
        for stage, since, until in spans(row.lanes.get(site, ()), row.seconds):
            found[stage].append((begin + since, begin + until))
            if stage == before:
                found[AGAIN].append((begin + since, begin + since))
            before = stage
    return found


def _begins(rounds: Sequence[RoundRecord]) -> list[float]:
    """When each round begins and the last one ends, in seconds of open rounds; a lane that ends late, as clocks are set, takes its time."""
    ends = (max([row.seconds, *(lane[-1][1] for lane in row.lanes.values() if lane)]) for row in rounds)
    return [0.0, *accumulate(ends)]


def _drawing(rounds: Sequence[RoundRecord], parts: dict[str, dict[str, list[tuple[float, float]]]]) -> Markup:
    begins = _begins(rounds)
    across = Scale(0.0, max(begins[-1], 1e-3), LABEL, RIGHT)
    foot = len(parts) * LANE
    lanes = (_lane(site, of_site, across, row * LANE) for row, (site, of_site) in enumerate(parts.items()))
    axis = _axis(rounds, begins, across, foot)
    label = f"timeline of {len(parts)} sites in {len(rounds)} phases; the table below has the same in numbers"
    return tag("svg", *axis, *lanes, viewBox=f"0 0 {WIDTH:g} {foot + 20:g}", role="img", aria_label=label, class_="states")


def _axis(rounds: Sequence[RoundRecord], begins: Sequence[float], across: Scale, foot: float) -> Iterator[Markup]:
    """Where each phase begins, the number of a round where there is room for it, and how long all of them took."""
    free = 0.0
    for row, begin in zip(rounds, begins, strict=False):
        x = across(begin)
        yield tag("line", x1=x, x2=x, y1=0, y2=foot, class_="grid")
        if row.phase == "train" and free <= x < RIGHT - TOTAL:
            yield tag("text", str(row.number), x=x, y=foot + 15, class_="tick middle")
            free = x + ROOM
    yield tag("text", "round", x=LABEL - 12, y=foot + 15, class_="tick end")
    yield tag("text", f"{duration(begins[-1])} in all", x=RIGHT, y=foot + 15, class_="tick end")


def _lane(site: str, parts: dict[str, list[tuple[float, float]]], across: Scale, top: float) -> Markup:
    drawn = [_shape(stage, [(across(begin), across(end)) for begin, end in parts[stage]]) for stage in (*STAGES, AGAIN) if parts.get(stage)]
    return tag(
        "g",
        tag("text", shortened(site, GRID_LETTERS), tag("title", site), x=LABEL - 8, y=14, class_="tick end"),
        *drawn,
        transform=f"translate(0 {top:g})",
    )


def _shape(stage: str, places: Sequence[tuple[float, float]]) -> Markup:
    """All parts of one stage in one lane, from and to these coordinates, as one path."""
    words = "tried again" if stage == AGAIN else STAGES[stage]
    if stage == AGAIN:
        path = "".join(f"M{x - 4:.1f} 0h8l-4 7z" for x, _ in places)
    elif stage == FAILED:
        path = "".join(f"M{x - 4:.1f} 6l8 8m0 -8l-8 8" for x, _ in places)
    else:
        high, low = HEIGHTS[stage]
        path = "".join(f"M{x:.1f} {high:g}h{max(end - x, THINNEST):.1f}v{low - high:g}h-{max(end - x, THINNEST):.1f}z" for x, end in places)
    return tag("path", tag("title", words), d=path, class_=f"stage-{stage}")


def _key(parts: dict[str, dict[str, list[tuple[float, float]]]]) -> Markup:
    """What the shapes that are there mean."""
    met = [stage for stage in (*STAGES, AGAIN) if any(of_site.get(stage) for of_site in parts.values())]
    boxes = {
        stage: tag("svg", _shape(stage, [(6.0, KEY - 6.0)]), viewBox=f"0 0 {KEY:g} {LANE:g}", class_="lane-key", aria_hidden="true") for stage in met
    }
    return tag("ul", *(tag("li", boxes[stage], STAGES.get(stage, "tried again")) for stage in met), class_="legend")


def _numbers(record: RunRecord) -> Markup:
    """Where the time of each site went, folded away."""
    rows = spent((row.lanes, row.seconds) for row in record.rounds)
    stages = [stage for stage in STAGES if any(row.seconds[stage] for row in rows.values())]
    counts = ("tried again", "lost, times", "failed, times")
    heads = (tag("th", text, scope="col", class_="number") for text in (*(STAGES[stage] for stage in stages), *counts))
    body = [tag("tr", tag("th", site, scope="row"), *_cells(row, stages)) for site, row in rows.items()]
    return tag("details", tag("summary", "Where the time of each site went, in numbers"), table(("Site", *heads), body))


def _cells(row: Spent, stages: Sequence[str]) -> Iterator[Markup]:
    for stage in stages:
        yield tag("td", duration(row.seconds[stage]) if row.seconds[stage] else "", class_="number")
    for count in (row.retries, row.away, row.failed):
        yield tag("td", str(count or ""), class_="number")
