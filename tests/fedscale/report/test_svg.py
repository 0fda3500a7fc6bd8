"""Drawings: round marks, curves where they belong, nothing that is not finite, and hover text on every point."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedscale.report.svg import (
    ANSWERED,
    HEIGHT,
    WIDTH,
    GridRow,
    Line,
    Point,
    Scale,
    dot_strip,
    drawable,
    line_chart,
    state_grid,
    state_swatch,
    strip_scale,
    swatch,
    thinned,
    tick_names,
    ticks,
    whole_ticks,
)
from tests.fedscale.report.outline import Element, outline

finite = st.floats(-1e299, 1e299)
points = st.lists(st.tuples(st.integers(0, 10_000).map(float), st.floats()), max_size=30)


def line(*points: Point, hair: bool = False, labelled: bool = False, name: str = "north") -> Line:
    return Line(name, points, "c0", hair=hair, labelled=labelled)


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def chart(*lines: Line, from_zero: bool = False) -> Element:
    return outline(line_chart(lines, "a label", from_zero=from_zero))


def texts(drawing: Element, *classes: str) -> list[str]:
    return [element.text for element in drawing.all("text", *classes)]


# ----------------------------------------------------------------------------------------------------------------- ticks


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.62, 0.98, [0.6, 0.7, 0.8, 0.9, 1.0]),
        (0.5, 0.5, [0.5, 0.6]),
        (0.0, 0.0, [0.0, 0.2]),
        (-3.0, 7.0, [-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0]),
        (0.0, 12.0, [0.0, 2.5, 5.0, 7.5, 10.0, 12.5]),
        (1e9, 3e9, [1e9, 1.5e9, 2e9, 2.5e9, 3e9]),
    ],
)
def test_ticks_are_round(low: float, high: float, marks: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(marks)


@given(finite, finite, st.integers(2, 12))
@example(0.0, 5e-324, 5)
@example(1.0, 1.0 + 1e-12, 5)
@example(-1e299, 1e299, 5)
@example(1e-295, 2e-295, 5)
def test_ticks_enclose_the_values_evenly(one: float, other: float, count: int) -> None:
    low, high = sorted((one, other))
    marks = ticks(low, high, count)
    steps = [b - a for a, b in pairwise(marks)]
    assert 2 <= len(marks) <= count + 2
    assert all(step > 0 for step in steps)
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    assert marks[0] <= low + steps[0] * 1e-5
    assert marks[-1] >= high - steps[0] * 1e-5


def test_ticks_of_rounds_are_whole_and_inside() -> None:
    assert whole_ticks(1, 40) == [5, 10, 15, 20, 25, 30, 35, 40]
    assert whole_ticks(1, 3) == [1, 2, 3]
    assert whole_ticks(7, 7) == [7]


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 12))
def test_whole_ticks_never_leave_the_axis(low: int, width: int, count: int) -> None:
    marks = whole_ticks(low, low + width, count)
    assert marks
    assert all(low <= mark <= low + width for mark in marks)


@pytest.mark.parametrize(
    ("marks", "names"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([0.0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([-0.0, 10.0, 20.0], ["0", "10", "20"]),
        ([0.1 * at for at in range(8, 11)], ["0.8", "0.9", "1.0"]),
        ([0.0, 2e6, 4e6], ["0", "2e+6", "4e+6"]),
        ([0.0, 2e-7, 4e-7], ["0", "2e-7", "4e-7"]),
        ([0.0, 2.5e-5, 5e-5], ["0.000000", "0.000025", "0.000050"]),
    ],
)
def test_ticks_of_one_axis_have_the_same_decimals(marks: list[float], names: list[str]) -> None:
    assert tick_names(marks) == names


def test_a_scale_maps_its_ends_and_centres_a_single_value() -> None:
    scale = Scale(10, 20, 100, 300)
    assert (scale(10), scale(15), scale(20)) == (100, 200, 300)
    assert Scale(3, 3, 100, 300)(3) == 200


@pytest.mark.parametrize(
    ("value", "yes"), [(0.0, True), (-1e299, True), (1e300, False), (math.nan, False), (math.inf, False), (-math.inf, False), (10**400, False)]
)
def test_only_finite_values_of_some_size_are_drawn(value: float, yes: bool) -> None:
    assert drawable(value) is yes


# ---------------------------------------------------------------------------------------------------------------- curves


def test_a_chart_names_itself_and_its_axes() -> None:
    drawing = chart(line((1, 0.5), (2, 0.75), (3, 1.0)))
    assert drawing.one("svg").attributes["aria-label"] == "a label"
    assert drawing.one("svg").attributes["role"] == "img"
    assert texts(drawing, "tick", "end") == ["0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]
    assert texts(drawing, "tick", "middle") == ["1", "2", "3", "round"]


def test_larger_values_lie_higher_and_later_rounds_to_the_right() -> None:
    found = coordinates(chart(line((1, 0.5), (2, 0.75), (3, 1.0))).one("path", "curve").attributes["d"])
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert [y for _, y in found] == sorted((y for _, y in found), reverse=True)


def test_a_value_that_is_not_finite_lifts_the_pen() -> None:
    path = chart(line((1, 0.5), (2, 0.6), (3, math.nan), (4, 0.7), (5, 0.8))).one("path", "curve").attributes["d"]
    assert re.sub(r"[^ML]", "", path) == "MLML"


def test_every_point_tells_round_name_and_value_on_hover() -> None:
    drawing = chart(line((1, 0.5), (2, math.inf), (3, 0.75)))
    assert [dot.one("title").text for dot in drawing.all("circle")] == ["round 1, north: 0.500", "round 3, north: 0.750"]
    assert drawing.one("path", "curve").one("title").text == "north"


def test_only_a_labelled_line_has_its_last_value_and_a_halo() -> None:
    drawing = chart(line((1, 0.5), (2, 0.6)), line((1, 0.7), (2, 0.8), labelled=True))
    assert texts(drawing, "value") == ["0.800"]
    assert len(drawing.all("path", "halo")) == 1


def test_the_label_is_the_last_value_that_could_be_drawn() -> None:
    assert texts(chart(line((1, 0.5), (2, math.nan), labelled=True)), "value") == ["0.500"]


def test_hairlines_have_no_marks_but_a_name() -> None:
    drawing = chart(*(line((1, 0.5), (2, 0.6), hair=True, name=f"site-{at}") for at in range(30)))
    assert drawing.all("circle") == []
    assert [path.one("title").text for path in drawing.all("path", "curve")] == [f"site-{at}" for at in range(30)]


def test_lines_are_drawn_in_order_so_the_last_lies_on_top() -> None:
    drawing = chart(line((1, 0.5), name="below"), line((1, 0.6), name="above"))
    assert [path.one("title").text for path in drawing.all("path", "curve")] == ["below", "above"]


def test_an_axis_may_start_at_zero() -> None:
    assert texts(chart(line((1, 90.0), (2, 100.0)), from_zero=True), "end")[0] == "0"
    assert texts(chart(line((1, 90.0), (2, 100.0))), "end")[0] == "90"


@pytest.mark.parametrize("lines", [[], [line()], [line((1, math.nan))], [line((1, 1e308), (2, -math.inf))]])
def test_without_a_finite_value_there_is_a_word_instead(lines: list[Line]) -> None:
    drawing = chart(*lines)
    assert drawing.one("p", "empty").text == "No finite value to draw."
    assert drawing.all("svg") == []


@given(st.lists(points, min_size=1, max_size=4))
def test_whatever_is_drawn_lies_inside_the_chart(series: list[list[Point]]) -> None:
    drawing = chart(*(Line(f"n{at}", tuple(sorted(of_line)), "c0", labelled=at == 0) for at, of_line in enumerate(series)))
    found = [point for path in drawing.all("path") for point in coordinates(path.attributes["d"])]
    found += [(float(dot.attributes["cx"]), float(dot.attributes["cy"])) for dot in drawing.all("circle")]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in found)


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    drawing = chart(line(*((float(at), float(at)) for at in range(5000))))
    assert len(coordinates(drawing.one("path", "curve").attributes["d"])) == 240
    marks = drawing.all("circle")
    assert len(marks) == 40
    assert marks[0].one("title").text == "round 0, north: 0.000"
    assert marks[-1].one("title").text == "round 4999, north: 4999"


@given(st.integers(0, 300), st.integers(2, 50))
def test_thinning_keeps_order_and_ends(length: int, limit: int) -> None:
    whole = [(float(at), 0.0) for at in range(length)]
    kept = thinned(whole, limit)
    assert len(kept) == min(length, limit)
    assert kept == sorted(set(kept))
    assert kept[:1] == whole[:1]
    assert kept[-1:] == whole[-1:]


def test_a_swatch_shows_the_style_of_its_curve() -> None:
    drawing = outline(swatch("c3 d1"))
    assert drawing.one("svg", "swatch", "c3", "d1").attributes["aria-hidden"] == "true"
    assert drawing.one("path", "curve").attributes["d"]


# ---------------------------------------------------------------------------------------------------------------- strips


def test_a_dot_lies_where_its_value_is() -> None:
    marks = [0.8, 0.9, 1.0]
    drawing = outline(dot_strip(0.9, marks, "federated", "Federated"))
    lines = [float(mark.attributes["x1"]) for mark in drawing.all("line", "grid")]
    assert float(drawing.one("circle").attributes["cx"]) == pytest.approx(lines[1])
    assert drawing.one("circle").one("title").text == "Federated: 0.900"
    assert drawing.one("svg").attributes["class"] == "strip federated"


def test_the_names_of_a_strip_stand_over_its_lines() -> None:
    marks = [0.8, 0.9, 1.0]
    names = outline(strip_scale(marks)).all("text")
    lines = outline(dot_strip(0.9, marks, "alone", "x")).all("line")
    assert [name.text for name in names] == ["0.8", "0.9", "1.0"]
    assert [name.attributes["x"] for name in names] == [mark.attributes["x1"] for mark in lines]


# ------------------------------------------------------------------------------------------------------------------ grids


def test_a_grid_has_a_row_a_node_and_a_cell_a_round() -> None:
    rows = [GridRow("north", "2 / 3", (ANSWERED, ANSWERED, "")), GridRow("south", "0 / 3", ("south, lost", "", ""))]
    drawing = outline(state_grid(rows, ["1", "2", "3"], "who took part"))
    assert drawing.one("svg", "states").attributes["aria-label"] == "who took part"
    assert [path.attributes["d"].count("M") for path in drawing.all("path", "answered")] == [2]
    assert [path.attributes["d"].count("M") for path in drawing.all("path", "absent")] == [1, 2]
    assert [cell.one("title").text for cell in drawing.all("g", "failed")] == ["south, lost"]
    assert texts(drawing, "middle") == ["1", "2", "3"]
    assert [element.text for element in drawing.all("text", "tick")][:2] == ["northnorth", "2 / 3"]


def test_failed_cells_are_told_by_shape_as_well_as_colour() -> None:
    failed = outline(state_swatch("a failure")).one("g", "failed")
    assert len(failed.all("rect")) == 1
    assert failed.one("path").attributes["d"].count("M") == 2
    assert outline(state_swatch(ANSWERED)).all("path", "answered")
    assert outline(state_swatch("")).all("path", "absent")


def test_long_names_are_cut_and_given_on_hover() -> None:
    name = "hospital-" + "h" * 60 + "-north-07"
    (label,) = outline(state_grid([GridRow(name, "1 / 1", (ANSWERED,))], ["1"], "x")).all("text", "end")
    assert label.children[0] == "hospital-h…h-north-07"
    assert label.one("title").text == name


@given(st.integers(1, 120))
def test_a_grid_never_leaves_its_frame(columns: int) -> None:
    states = tuple((ANSWERED, "", "round: lost")[at % 3] for at in range(columns))
    drawing = outline(state_grid([GridRow("north", "0", states)], [str(at) for at in range(columns)], "x"))
    width = float(drawing.one("svg").attributes["viewbox"].split()[2])
    cells = drawing.all("g", "failed")
    assert len(cells) == columns // 3
    assert all(float(cell.one("rect").attributes["x"]) + float(cell.one("rect").attributes["width"]) <= width for cell in cells)
    assert 1 <= len(drawing.all("text", "middle")) <= 14


@pytest.mark.parametrize("heights", [(0.98251, 0.98302), (0.1, 0.9), (0.00012345, 0.0001236), (-1234.5, 98765.0)])
def test_the_names_of_the_marks_are_not_cut_off(heights: tuple[float, float]) -> None:
    drawn = str(line_chart([Line("all sites", ((1.0, heights[0]), (2.0, heights[1])), "pooled")], "a label"))
    marks = [(float(re.findall(r'\bx="([0-9.]+)"', tag)[0]), name) for tag, name in re.findall(r"<text([^>]*tick end[^>]*)>([^<]+)<", drawn)]
    assert len(marks) >= 3
    # A digit is about 7 units wide in this font and size.
    assert all(end >= 7 * len(name) for end, name in marks)
