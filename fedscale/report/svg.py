"""Line charts, dot strips and state grids as inline SVG: no script, coloured by the page's style sheet through classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fedscale.report.markup import Markup, join, tag
from fedscale.report.units import number, shortened

Point: TypeAlias = tuple[float, float]

WIDTH, HEIGHT = 480.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 50.0, 12.0, 38.0
TICK_GAP, LETTER = 8.0, 8.0  # beside a mark's name, and the width of a letter in it
GRID_WIDTH, GRID_LABEL, GRID_COUNT, ROW, CELL = 1000.0, 170.0, 70.0, 18.0, 26.0
STRIP_WIDTH, STRIP_HEIGHT, STRIP_PAD = 320.0, 22.0, 24.0
GRID_NAMES, GRID_LETTERS = 12, 21
LARGEST, TINY = 1e300, 1e-290
FLAT, SLACK = 1e-9, 1e-6
DECIMALS = 5
ANSWERED = "answered"
CURVE_POINTS, HAIR_POINTS, MARKS = 240, 100, 40


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Args:
        name: who it belongs to, shown on hover.
        points: ``(round, value)`` in order; a value that is not finite interrupts the curve.
        style: classes of the style sheet.
        hair: one of many: drawn with fewer points and without marks.
        labelled: write the last value at the right end and set the curve off from those below.
    """

    name: str
    points: tuple[Point, ...]
    style: str
    hair: bool = False
    labelled: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values ``low..high`` to coordinates ``start..end``; the middle when there is only one value."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of ``value``."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class GridRow:
    """One line of a grid: its name, a count for its right end, and one state a column: empty, ``ANSWERED`` or what to say of a failure."""

    name: str
    count: str
    states: tuple[str, ...]


def drawable(value: float) -> bool:
    """Finite and small enough that differences stay finite too."""
    return abs(value) < LARGEST


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Two to ``count + 2`` round values, evenly spaced by 1, 2, 2.5 or 5 times a power of ten, that enclose ``low..high``."""
    span = high - low
    if span <= abs(high) * FLAT + TINY:
        span = abs(high) if abs(high) > TINY else 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * power for unit in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0) if unit * power * count >= span)
    first = math.floor(low / step + SLACK)
    last = max(math.ceil(high / step - SLACK), first + 1)
    return [index * step for index in range(first, last + 1)]


def thinned(points: Sequence[Point], limit: int) -> list[Point]:
    """At most ``limit`` of the points, evenly picked, the first and the last among them."""
    if len(points) <= limit:
        return list(points)
    return [points[round(index * (len(points) - 1) / (limit - 1))] for index in range(limit)]


def line_chart(lines: Sequence[Line], label: str, *, from_zero: bool = False, over: str = "round") -> Markup:
    """Curves over rounds, or whatever else, with axes, grid and hover text.

    Args:
        lines: drawn in order, so the most important one comes last.
        label: what a screen reader says.
        from_zero: let the vertical axis start at zero.
        over: what the horizontal axis counts.
    """
    points = [point for line in lines for point in line.points if drawable(point[1])]
    if not points:
        return tag("p", "No finite value to draw.", class_="empty")
    heights = [value for _, value in points]
    marks = ticks(min(heights + [0.0] * from_zero), max(heights))
    names = tick_names(marks)
    left = max(LEFT, TICK_GAP + LETTER * max(map(len, names)))
    across = Scale(min(x for x, _ in points), max(x for x, _ in points), left + 6, WIDTH - RIGHT)
    up = Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    drawn = [
        *_y_axis(list(zip(names, marks, strict=True)), up, left),
        *_x_axis(across, over, left),
        *(_curve(line, across, up, over) for line in lines),
    ]
    return tag("svg", *drawn, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=label, class_="chart")


def _y_axis(marks: Sequence[tuple[str, float]], up: Scale, left: float) -> Iterator[Markup]:
    for name, mark in marks:
        yield tag("line", x1=left, x2=WIDTH - RIGHT + 6, y1=up(mark), y2=up(mark), class_="axis" if mark == up.low else "grid")
        yield tag("text", name, x=left - TICK_GAP, y=up(mark) + 4, class_="tick end")


def _x_axis(across: Scale, over: str, left: float) -> Iterator[Markup]:
    base = HEIGHT - BOTTOM
    for mark in whole_ticks(across.low, across.high):
        yield tag("line", x1=across(mark), x2=across(mark), y1=base, y2=base + 4, class_="axis")
        yield tag("text", f"{mark:g}", x=across(mark), y=base + 17, class_="tick middle")
    yield tag("text", over, x=(left + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="tick middle")


def whole_ticks(low: float, high: float, count: int = 8) -> list[int]:
    """Round whole numbers within ``low..high``, and ``low`` itself where the axis holds nothing else."""
    inside = [int(mark) for mark in ticks(low, high, count) if mark == int(mark) and low <= mark <= high]
    return inside or [int(low)]


def tick_names(marks: Sequence[float]) -> list[str]:
    """The marks of one axis, all with the same number of decimals."""
    step = marks[1] - marks[0]
    largest = max(abs(mark) for mark in marks)
    if largest >= 10.0**DECIMALS or step < 10.0**-DECIMALS:
        return [number(mark) if mark else "0" for mark in marks]
    decimals = next(n for n in range(DECIMALS + 3) if abs(round(step, n) - step) < step * SLACK)
    return [f"{mark + 0.0:.{decimals}f}" for mark in marks]


def _curve(line: Line, across: Scale, up: Scale, over: str) -> Markup:
    points = thinned(line.points, HAIR_POINTS if line.hair else CURVE_POINTS)
    commands = _path(points, across, up)
    path = tag("path", tag("title", line.name), d=commands, class_="curve")
    finite = [point for point in points if drawable(point[1])]
    if line.hair or not finite:
        return tag("g", path, class_=line.style)
    dots = join(
        tag("circle", tag("title", f"{over} {x:g}, {line.name}: {number(y)}"), cx=across(x), cy=up(y), r=3) for x, y in thinned(finite, MARKS)
    )
    x, y = finite[-1]
    end = tag("text", number(y), x=across(x) + 8, y=up(y) + 4, class_="value") if line.labelled else ""
    halo = tag("path", d=commands, class_="halo") if line.labelled else ""
    return tag("g", halo, path, dots, end, class_=line.style)


def _path(points: Sequence[Point], across: Scale, up: Scale) -> str:
    """Path commands; the pen is lifted over every value that cannot be drawn."""
    commands, pen = [], "M"
    for x, y in points:
        if drawable(y):
            commands.append(f"{pen}{across(x):.1f} {up(y):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(commands)


def swatch(style: str) -> Markup:
    """A short piece of a curve for the legend."""
    return tag("svg", tag("path", d="M1 6L27 6", class_="curve"), viewBox="0 0 28 12", class_=f"swatch {style}", aria_hidden="true")


def dot_strip(value: float, marks: Sequence[float], style: str, label: str) -> Markup:
    """One value as a dot on the scale ``marks``, to be stacked in a table's column."""
    along = Scale(marks[0], marks[-1], STRIP_PAD, STRIP_WIDTH - STRIP_PAD)
    middle = STRIP_HEIGHT / 2
    grid = join(tag("line", x1=along(mark), x2=along(mark), y1=0, y2=STRIP_HEIGHT, class_="grid") for mark in marks)
    dot = tag("circle", tag("title", f"{label}: {number(value)}"), cx=along(value), cy=middle, r=5, class_="dot")
    return tag("svg", grid, dot, viewBox=f"0 0 {STRIP_WIDTH:g} {STRIP_HEIGHT:g}", class_=f"strip {style}", role="img", aria_label=number(value))


def strip_scale(marks: Sequence[float]) -> Markup:
    """The head of a column of dot strips: the names of its grid lines."""
    along = Scale(marks[0], marks[-1], STRIP_PAD, STRIP_WIDTH - STRIP_PAD)
    names = zip(tick_names(marks), marks, strict=True)
    texts = join(tag("text", name, x=along(mark), y=12, class_="tick middle") for name, mark in names)
    return tag("svg", texts, viewBox=f"0 0 {STRIP_WIDTH:g} 16", class_="strip", aria_hidden="true")


def state_grid(rows: Sequence[GridRow], columns: Sequence[str], label: str) -> Markup:
    """Rows of states, one cell a column: filled for ``ANSWERED``, crossed for a failure, a faint dot for neither."""
    cell = min((GRID_WIDTH - GRID_LABEL - GRID_COUNT) / max(len(columns), 1), CELL)
    lines = (_grid_row(row, cell, index * ROW) for index, row in enumerate(rows))
    foot = len(rows) * ROW + 14
    every = max(1, *whole_ticks(0, len(columns) - 1, GRID_NAMES)[:2])
    marks = range(every - 1, len(columns), every)
    names = (tag("text", columns[at], x=GRID_LABEL + (at + 0.5) * cell, y=foot, class_="tick middle") for at in marks)
    return tag("svg", *lines, *names, viewBox=f"0 0 {GRID_WIDTH:g} {foot + 6:g}", role="img", aria_label=label, class_="states")


def state_swatch(state: str) -> Markup:
    """One cell of a state grid for the legend."""
    return tag("svg", *_cells((state,), [0.0], ROW - 2), viewBox=f"0 0 {ROW - 2:g} {ROW - 2:g}", class_="key", aria_hidden="true")


def _grid_row(row: GridRow, cell: float, top: float) -> Markup:
    side = cell * 0.9
    lefts = [GRID_LABEL + index * cell for index in range(len(row.states))]
    texts = (
        tag("text", shortened(row.name, GRID_LETTERS), tag("title", row.name), x=GRID_LABEL - 8, y=12, class_="tick end"),
        tag("text", row.count, x=GRID_LABEL + len(row.states) * cell + 8, y=12, class_="tick"),
    )
    return tag("g", *texts, *_cells(row.states, lefts, side), transform=f"translate(0 {top:g})")


def _cells(states: Sequence[str], lefts: Sequence[float], side: float) -> Iterator[Markup]:
    """The cells of one row: one path for all that answered, one for all absent, a group with hover text for each failure."""
    tall, cells = ROW - 2, list(zip(lefts, states, strict=True))
    solid = "".join(f"M{x:.1f} 0h{side:.1f}v{tall:g}h-{side:.1f}z" for x, state in cells if state == ANSWERED)
    faint = "".join(f"M{x + side / 2 - 1:.1f} {tall / 2:.1f}h2" for x, state in cells if not state)
    if solid:
        yield tag("path", d=solid, class_="answered")
    if faint:
        yield tag("path", d=faint, class_="absent")
    for x, state in cells:
        if state not in ("", ANSWERED):
            yield _failed_cell(x, side, tall, state)


def _failed_cell(x: float, side: float, tall: float, title: str) -> Markup:
    inset = min(side, tall) * 0.25
    left, right, top, foot = (f"{at:.1f}" for at in (x + inset, x + side - inset, inset, tall - inset))
    cross = f"M{left} {top}L{right} {foot}M{right} {top}L{left} {foot}"
    return tag("g", tag("title", title), tag("rect", x=x, y=0, width=side, height=tall), tag("path", d=cross), class_="failed")
