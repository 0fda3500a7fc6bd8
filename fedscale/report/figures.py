"""The pictures of a run: metric curves, participation, time and traffic, and alone against federated against pooled."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from fedscale.record import JSON, PHASES, Phase, RunRecord, participants
from fedscale.report.markup import Markup, join, table, tag
from fedscale.report.svg import ANSWERED, GridRow, Line, Point, dot_strip, drawable, line_chart, state_grid, state_swatch, strip_scale, swatch, ticks
from fedscale.report.units import SIZES, TIMES, number, unit_of

Row: TypeAlias = Mapping[str, JSON]

KINDS = {"alone": "Alone", "federated": "Federated", "pooled": "All data in one place"}
FULL_NAMES = {"evaluate": "evaluation", "train": "training"}
CAPITALS = ("auc", "auprc", "mae", "mse", "rmse", "r2", "f1")
DISTINCT_SITES, COLOURS, DASHES = 12, 6, 4
HAIR = "hair"
FEW_POINTS = 25
GRID_ROWS, GRID_COLUMNS = 40, 120
FIGURES = 24


def metric_title(name: str) -> str:
    """A metric's name as a reader writes it."""
    return name.upper() if name in CAPITALS else name[:1].upper() + name[1:].replace("_", " ")


def metric_keys(record: RunRecord) -> list[tuple[Phase, str]]:
    """Every metric that was measured, pooled or at a site: evaluation before training, in order of first appearance."""
    seen = dict.fromkeys((row.phase, name) for row in record.rounds for metrics in (row.metrics, *row.sites.values()) for name in metrics)
    return [key for phase in PHASES for key in seen if key[0] == phase]


def metric_figures(record: RunRecord) -> list[Markup]:
    """One chart a metric: the pooled value bold over the sites' thin lines, each site in the same style on every chart."""
    measured = {site for row in record.rounds for site in row.sites}
    styles = styles_of([site for site in participants(record) if site in measured])
    return [_metric_figure(record, phase, name, styles) for phase, name in metric_keys(record)[:FIGURES]]


def styles_of(sites: Sequence[str]) -> dict[str, str]:
    """A colour and dashes of its own for each of a few sites, none for any of many."""
    return {site: f"c{at % COLOURS} d{at % DASHES}" if len(sites) <= DISTINCT_SITES else HAIR for at, site in enumerate(sites)}


def _metric_figure(record: RunRecord, phase: Phase, name: str, styles: Mapping[str, str]) -> Markup:
    rows = [row for row in record.rounds if row.phase == phase]
    pooled = [(float(row.number), row.metrics[name]) for row in rows if name in row.metrics]
    sites: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        for site, metrics in row.sites.items():
            if name in metrics:
                sites[site].append((float(row.number), metrics[name]))
    lines = [line_of(site, sites[site], style) for site, style in styles.items() if site in sites]
    lines += _extremes([line for line in lines if line.style.startswith(HAIR)])
    if pooled:
        lines.append(line_of("all sites", pooled, "pooled", labelled=True))
    title = f"{metric_title(name)}, {FULL_NAMES[phase]}"
    return figure(title, line_chart(lines, f"{title}, by round"), legend(lines))


def line_of(name: str, points: Sequence[Point], style: str, *, labelled: bool = False) -> Line:
    """A curve; a single point and a few are drawn with marks, hairlines without."""
    size = " lone" if len(points) == 1 else " few" if len(points) <= FEW_POINTS else ""
    return Line(name, tuple(points), style + size, hair=style == HAIR and len(points) > 1, labelled=labelled)


def _extremes(hairs: Sequence[Line]) -> list[Line]:
    """Of many sites the ones that ended lowest and highest once more, in colour."""
    ended = [line for line in hairs if drawable(line.points[-1][1])]
    if not ended:
        return []
    lowest, highest = (choose(ended, key=lambda line: line.points[-1][1]) for choose in (min, max))
    return [line_of(lowest.name, lowest.points, "c1 d2"), line_of(highest.name, highest.points, "c0 d1")]


def legend(lines: Sequence[Line], *, values: bool = True) -> Markup:
    """The pooled line first, then every line with a style of its own, with its last value if wanted; hairlines share one entry."""
    hairs = [line for line in lines if line.style.startswith(HAIR)]
    shown = [line for line in reversed(lines) if line.labelled] + [line for line in lines if line not in hairs and not line.labelled]
    entries = [tag("li", swatch(line.style), line.name, tag("b", number(line.points[-1][1])) if values else "") for line in shown]
    if hairs:
        entries.append(tag("li", swatch(HAIR), f"{len(hairs)} sites; in colour those that ended lowest and highest"))
    return tag("ul", *entries, class_="legend")


def figure(title: str, *parts: str, style: str | None = None) -> Markup:
    """A picture with its title and whatever stands below it."""
    return tag("figure", tag("h3", title), *parts, class_=style)


def traffic_figures(record: RunRecord) -> list[Markup]:
    """Seconds and bytes of each round, its phases added up."""
    columns: dict[str, dict[int, float]] = {"seconds": defaultdict(float), "to the nodes": defaultdict(float), "from the nodes": defaultdict(float)}
    for row in record.rounds:
        for points, value in zip(columns.values(), (row.seconds, row.bytes_down, row.bytes_up), strict=True):
            points[row.number] += value
    seconds, down, up = columns.values()
    scale, name = unit_of(max(filter(math.isfinite, seconds.values()), default=1), TIMES)
    size, size_name = unit_of(max((*down.values(), *up.values()), default=1), SIZES)
    time_line = _scaled("all phases", seconds, scale, "pooled")
    byte_lines = [_scaled("to the nodes", down, size, "c1 d1"), _scaled("from the nodes", up, size, "c0")]
    return [
        figure(f"Time per round, {name}", line_chart([time_line], "time per round", from_zero=True)),
        figure(f"Traffic per round, {size_name}", line_chart(byte_lines, "traffic per round", from_zero=True), legend(byte_lines, values=False)),
    ]


def _scaled(name: str, values: Mapping[int, float], scale: float, style: str) -> Line:
    return line_of(name, [(float(at), value / scale) for at, value in sorted(values.items())], style)


def participation_figure(record: RunRecord) -> Markup:
    """Which node answered, failed or was absent in which round; many rounds share columns, of many nodes those that missed most are shown."""
    numbers = sorted({row.number for row in record.rounds})
    width = math.ceil(len(numbers) / GRID_COLUMNS)
    states = _states(record)
    answered = {node: sum(state == ANSWERED for state in of_node.values()) for node, of_node in states.items()}
    least = sorted(states, key=answered.__getitem__)
    shown = least[:GRID_ROWS] if len(states) > GRID_ROWS else list(states)
    rows = [GridRow(node, f"{answered[node]} / {len(numbers)}", _cells(states[node], numbers, width)) for node in shown]
    notes = [f"Each column is {width} rounds; a failure in one of them marks it."] if width > 1 else []
    if len(states) > GRID_ROWS:
        rest = f"{answered[least[GRID_ROWS]]} of {len(numbers)}"
        notes.append(f"The {GRID_ROWS} of {len(states)} nodes that answered least; each of the others answered in at least {rest} rounds.")
    ends = [str(numbers[min(at + width, len(numbers)) - 1]) for at in range(0, len(numbers), width)]
    picture = state_grid(rows, ends, f"participation of {len(rows)} nodes in {len(numbers)} rounds")
    caption = tag("figcaption", " ".join(notes)) if notes else ""
    return figure("Who took part, by round", tag("div", picture, class_="scroll"), _state_key(), caption, style="wide")


def _states(record: RunRecord) -> dict[str, dict[int, str]]:
    """Node to round to ``answered`` or a failure's text; a failure in one phase outweighs an answer in the other."""
    states: dict[str, dict[int, str]] = {node: {} for node in participants(record)}
    for row in record.rounds:
        for node in row.answered:
            states[node].setdefault(row.number, ANSWERED)
        for node, failure in row.failures.items():
            states[node][row.number] = f"{node}, round {row.number}: {failure}"
    return states


def _cells(states: Mapping[int, str], numbers: Sequence[int], width: int) -> tuple[str, ...]:
    """One state for every ``width`` rounds: a failure if there is one, else an answer if there is one, else nothing."""
    columns = (numbers[at : at + width] for at in range(0, len(numbers), width))
    return tuple(min((states.get(at, "") for at in column), key=lambda state: (state == "", state == ANSWERED)) for column in columns)


def _state_key() -> Markup:
    names = {ANSWERED: "answered", "a failure": "failed", "": "not asked or absent"}
    return tag("ul", *(tag("li", state_swatch(state), name) for state, name in names.items()), class_="legend")


def comparison(rows: JSON) -> Markup | None:
    """Each site alone, federated and pooled: a sentence, a table and a dot for every row; nothing without rows to show."""
    entries = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
    columns = list(dict.fromkeys(key for row in entries for key in row if key not in ("kind", "site")))
    metric = _main_metric(entries, columns)
    if metric is None:
        return None
    columns.append(columns.pop(columns.index(metric)))
    values = [value for row in entries if (value := drawable_number(row.get(metric))) is not None]
    marks = ticks(min(values), max(values), 4)
    names = (tag("th", metric_title(key), scope="col", class_="number") for key in columns)
    scale = tag("th", strip_scale(marks), scope="col", class_="plot")
    body = (_comparison_row(row, columns, metric, marks) for row in entries)
    return join((tag("p", _verdict(entries, metric)), table(("", *names, scale), body)))


def _main_metric(rows: Iterable[Row], columns: Sequence[str]) -> str | None:
    """The column to draw: ``auc`` where there is one, else the last that holds a fraction."""
    drawn = [key for key in columns if any(isinstance(row.get(key), float) and drawable_number(row.get(key)) is not None for row in rows)]
    return "auc" if "auc" in drawn else next(reversed(drawn), None)


def drawable_number(value: JSON) -> float | None:
    """``value`` where it is a number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if drawable(value) else None


def _comparison_row(row: Row, columns: Sequence[str], metric: str, marks: Sequence[float]) -> Markup:
    kind, name, value = str(row.get("kind", "")), _row_name(row), drawable_number(row.get(metric))
    cells = (tag("td", plain_text(row.get(key)), class_="number") for key in columns)
    drawing = dot_strip(value, marks, kind if kind in KINDS else "alone", name) if value is not None else ""
    return tag("tr", tag("th", name, scope="row"), *cells, tag("td", drawing, class_="plot"), class_="federated" if kind == "federated" else None)


def _row_name(row: Row) -> str:
    kind, site = row.get("kind", ""), row.get("site", "")
    if kind == "alone":
        return f"{site} alone"
    return f"{KINDS.get(str(kind), kind)} {site}".strip()


def _verdict(rows: Iterable[Row], metric: str) -> str:
    """The comparison in one sentence, without judging which direction is the better one."""
    of_kind: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (value := drawable_number(row.get(metric))) is not None:
            of_kind[str(row.get("kind"))].append(value)
    parts = [f"federated {number(of_kind['federated'][-1])}"] if of_kind["federated"] else []
    if alone := of_kind["alone"]:
        parts.append(f"each site alone {number(min(alone))} to {number(max(alone))}" if len(alone) > 1 else f"the site alone {number(alone[0])}")
    if of_kind["pooled"]:
        parts.append(f"all data in one place {number(of_kind['pooled'][-1])}")
    return f"{metric_title(metric)}: {'; '.join(parts)}." if parts else ""


def flat(value: JSON, dot: str = ".", name: str = "") -> dict[str, str]:
    """Names and texts of whatever a run carries; the names of what is nested stand behind that of its parent and a dot, lists become one text."""
    if isinstance(value, Mapping):
        return {key: text for at, entry in value.items() for key, text in flat(entry, dot, f"{name}{dot}{at}" if name else str(at)).items()}
    if isinstance(value, list | tuple):
        value = ", ".join(entry if isinstance(entry, str) else plain_text(entry) for entry in value)
    return {} if value is None else {name or "value": plain_text(value)}


def plain_text(value: JSON) -> str:
    """A value of JSON for a table's cell; ``yes`` and ``no``, fractions as people read them, nothing for ``null``."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return number(value)
    return str(value)
