"""The pictures of a run show what the record says: every site, every round, every failure."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedscale.record import RunRecord
from fedscale.report.figures import comparison, metric_figures, metric_keys, metric_title, participation_figure, plain_text, traffic_figures
from fedscale.report.markup import Markup
from tests.fedscale.report.outline import Element, outline
from tests.fedscale.sample_run import MEMORY, TIMEOUT, large_run, round_of, run_of


def figures(made: list[Markup]) -> list[Element]:
    return [outline(figure).one("figure") for figure in made]


def legend(figure: Element) -> list[str]:
    return [item.text for item in figure.one("ul", "legend").all("li")]


def groups(figure: Element, *classes: str) -> list[str]:
    """The names of the curves of that style."""
    return [group.all("title")[0].text for group in figure.one("svg", "chart").all("g", *classes)]


def run_with_sites(count: int, rounds: int = 2) -> RunRecord:
    names = [f"s{at:02d}" for at in range(count)]
    rows = [
        round_of(number, metrics={"loss": 1.0}, sites={name: {"loss": at + number / 10} for at, name in enumerate(names)})
        for number in range(1, rounds + 1)
    ]
    return run_of(*rows, nodes=tuple(names))


# --------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("name", "title"), [("auc", "AUC"), ("f1", "F1"), ("accuracy", "Accuracy"), ("c_index", "C index"), ("LogLoss", "LogLoss"), ("", "")]
)
def test_metrics_are_written_as_readers_write_them(name: str, title: str) -> None:
    assert metric_title(name) == title


def test_there_is_a_figure_for_each_metric_of_each_phase_evaluation_first() -> None:
    record = run_of(round_of(1), round_of(1, "evaluate", metrics={"auc": 0.7, "loss": 1.0}, sites={"north": {"auc": 0.7, "recall": 0.5}}))
    assert metric_keys(record) == [("evaluate", "auc"), ("evaluate", "loss"), ("evaluate", "recall"), ("train", "loss")]
    shown = [figure.one("h3").text for figure in figures(metric_figures(record))]
    assert shown == ["AUC, evaluation", "Loss, evaluation", "Recall, evaluation", "Loss, training"]


def test_the_pooled_line_is_on_top_and_first_in_the_legend() -> None:
    (figure,) = figures(metric_figures(run_of(round_of(1), round_of(2))))
    assert groups(figure)[-1] == "all sites"
    assert groups(figure, "pooled") == ["all sites"]
    assert legend(figure) == ["all sites0.500", "north0.450", "south0.550"]
    assert [text.text for text in figure.all("text", "value")] == ["0.500"]


def test_a_secret_sum_has_only_the_pooled_line() -> None:
    (figure,) = figures(metric_figures(run_of(round_of(1, sites={}), round_of(2, sites={}))))
    assert legend(figure) == ["all sites0.500"]


def test_a_metric_only_sites_measure_has_no_pooled_line() -> None:
    (figure,) = figures(metric_figures(run_of(round_of(1, metrics={}))))
    assert legend(figure) == ["north0.900", "south1.100"]
    assert figure.all("text", "value") == []


def test_twelve_sites_all_look_different() -> None:
    (figure,) = figures(metric_figures(run_with_sites(12)))
    styles = [group.attributes["class"] for group in figure.one("svg", "chart").all("g")]
    assert len(set(styles)) == 13
    assert len(legend(figure)) == 13


def test_a_site_looks_the_same_on_every_figure() -> None:
    record = run_of(
        round_of(1, sites={"south": {"loss": 1.0}}), round_of(1, "evaluate", metrics={}, sites={"north": {"auc": 0.7}, "south": {"auc": 0.8}})
    )
    auc, loss = figures(metric_figures(record))
    style = {figure.one("h3").text: figure.one("svg", "chart").all("g", "c1")[0].all("title")[0].text for figure in (auc, loss)}
    assert style == {"AUC, evaluation": "south", "Loss, training": "south"}


def test_of_many_sites_only_the_ends_are_named() -> None:
    (figure,) = figures(metric_figures(run_with_sites(200)))
    assert len(groups(figure, "hair")) == 200
    assert legend(figure) == ["all sites1.000", "s000.200", "s199199.2", "200 sites; in colour those that ended lowest and highest"]
    assert groups(figure, "c1") == ["s00"]
    assert groups(figure, "c0") == ["s199"]


def test_many_sites_in_one_round_are_dots() -> None:
    (figure,) = figures(metric_figures(run_with_sites(30, rounds=1)))
    assert len(figure.all("circle")) == 30 + 2 + 1
    assert len(groups(figure, "hair", "lone")) == 30


def test_many_diverged_sites_have_no_ends() -> None:
    sites = {f"s{at}": {"loss": math.nan} for at in range(20)}
    (figure,) = figures(metric_figures(run_of(round_of(1, sites=sites), round_of(2, sites=sites))))
    assert groups(figure, "c0") == groups(figure, "c1") == []
    assert legend(figure)[0] == "all sites0.500"


def test_a_diverged_metric_is_said_in_words() -> None:
    (figure,) = figures(metric_figures(run_of(round_of(1, metrics={"loss": math.nan}, sites={}))))
    assert figure.one("p", "empty").text == "No finite value to draw."
    assert legend(figure) == ["all sitesnot finite"]


def test_short_curves_show_their_points_and_long_ones_on_hover() -> None:
    (short,) = figures(metric_figures(run_of(*(round_of(number) for number in range(1, 26)))))
    (long,) = figures(metric_figures(run_of(*(round_of(number) for number in range(1, 27)))))
    assert len(short.one("svg", "chart").all("g", "few")) == 3
    assert long.one("svg", "chart").all("g", "few") == []
    assert len(long.all("circle")) == 3 * 26


def test_there_is_an_end_to_figures() -> None:
    record = run_of(round_of(1, metrics={f"m{at}": 1.0 for at in range(40)}, sites={}))
    assert len(metric_figures(record)) == 24


# --------------------------------------------------------------------------------------------------------------- traffic


def test_time_and_bytes_of_both_phases_are_added_up() -> None:
    time, traffic = figures(traffic_figures(run_of(round_of(1), round_of(1, "evaluate"), round_of(2))))
    assert time.one("h3").text == "Time per round, s"
    assert [title.text for title in time.all("title")][1:] == ["round 1, all phases: 4.000", "round 2, all phases: 2.000"]
    assert traffic.one("h3").text == "Traffic per round, MB"
    assert legend(traffic) == ["to the nodes", "from the nodes"]
    assert "round 1, from the nodes: 4.000" in [title.text for title in traffic.all("title")]
    assert "round 1, to the nodes: 2.000" in [title.text for title in traffic.all("title")]


@pytest.mark.parametrize(("seconds", "unit"), [(0.001, "s"), (90.0, "min"), (9000.0, "h"), (math.nan, "s")])
def test_time_is_drawn_in_a_unit_that_suits(seconds: float, unit: str) -> None:
    time, _ = figures(traffic_figures(run_of(round_of(1, seconds=seconds))))
    assert time.one("h3").text == f"Time per round, {unit}"


def test_both_axes_start_at_zero() -> None:
    for figure in figures(traffic_figures(run_of(round_of(1), round_of(2, seconds=2.1)))):
        assert float(figure.all("text", "end")[0].text) == 0


# ---------------------------------------------------------------------------------------------------------- participation


def grid(record: RunRecord) -> Element:
    return outline(participation_figure(record)).one("figure")


def rows(figure: Element) -> list[tuple[str, str]]:
    names = figure.one("svg", "states").all("text", "end")
    counts = [text for text in figure.one("svg", "states").all("text", "tick") if text.attributes["class"] == "tick"]
    return [(name.one("title").text, count.text) for name, count in zip(names, counts, strict=True)]


def test_every_node_has_a_row_even_one_that_never_answered() -> None:
    figure = grid(run_of(round_of(1), round_of(2, answered=("north",)), nodes=("idle", "north", "south")))
    assert rows(figure) == [("idle", "0 / 2"), ("north", "2 / 2"), ("south", "1 / 2")]
    assert [path.attributes["d"].count("M") for path in figure.one("svg", "states").all("path", "absent")] == [2, 1]
    assert figure.all("figcaption") == []


def test_a_failure_in_either_phase_marks_the_round() -> None:
    record = run_of(
        round_of(1, failures={"north": TIMEOUT}, answered=("south",)),
        round_of(1, "evaluate"),
        round_of(2),
        round_of(2, "evaluate", failures={"south": MEMORY}, answered=("north",)),
    )
    figure = grid(record)
    assert rows(figure) == [("north", "1 / 2"), ("south", "1 / 2")]
    assert [cell.one("title").text for cell in figure.one("svg", "states").all("g", "failed")] == [
        f"north, round 1: {TIMEOUT}",
        f"south, round 2: {MEMORY}",
    ]


def test_the_key_tells_all_three_states() -> None:
    items = grid(run_of(round_of(1))).one("ul", "legend").all("li")
    assert [item.children[-1] for item in items] == ["answered", "failed", "not asked or absent"]
    assert [
        item.all(name, state) != [] for item, name, state in zip(items, ("path", "g", "path"), ("answered", "failed", "absent"), strict=True)
    ] == [True] * 3


def test_of_many_nodes_those_that_missed_most_are_shown() -> None:
    answered = [tuple(f"n{at:03d}" for at in range(100) if at >= number) for number in range(60)]
    figure = grid(run_of(*(round_of(number + 1, answered=nodes, sites={}) for number, nodes in enumerate(answered)), nodes=answered[0]))
    assert len(rows(figure)) == 40
    assert rows(figure)[0] == ("n000", "1 / 60")
    assert figure.one("figcaption").text == "The 40 of 100 nodes that answered least; each of the others answered in at least 41 of 60 rounds."


def test_many_rounds_share_columns_and_a_failure_shows() -> None:
    record = run_of(*(round_of(number, failures={"south": TIMEOUT} if number == 201 else {}) for number in range(1, 251)))
    figure = grid(record)
    assert figure.one("figcaption").text == "Each column is 3 rounds; a failure in one of them marks it."
    assert [cell.one("title").text for cell in figure.one("svg", "states").all("g", "failed")] == [f"south, round 201: {TIMEOUT}"]
    assert figure.all("path", "answered")[0].attributes["d"].count("M") == 84
    assert rows(figure) == [("north", "250 / 250"), ("south", "249 / 250")]
    assert figure.all("text", "middle")[0].text == "30"


def test_columns_carry_the_numbers_of_their_rounds() -> None:
    figure = grid(run_of(*(round_of(number) for number in range(11, 16))))
    assert [text.text for text in figure.all("text", "middle")] == ["11", "12", "13", "14", "15"]


def test_a_large_grid_is_small_enough() -> None:
    assert len(participation_figure(large_run(sites=200, rounds=500))) < 600_000


# ------------------------------------------------------------------------------------------------------------- comparison

ROWS: list[dict[str, Any]] = [
    {"kind": "alone", "site": "north", "examples": 100, "auc": 0.9, "brier": 0.2},
    {"kind": "alone", "site": "south", "examples": 50, "auc": 0.85, "brier": 0.25},
    {"kind": "federated", "examples": 150, "auc": 0.96, "brier": 0.1},
    {"kind": "pooled", "examples": 150, "auc": 0.97},
]


def compared(rows: Any) -> Element:
    made = comparison(rows)
    assert made is not None
    return outline(made)


def cells(element: Element) -> list[list[str]]:
    return [[cell.text for cell in row.children if isinstance(cell, Element)][:-1] for row in element.one("tbody").all("tr")]


def test_the_comparison_is_one_sentence_and_a_table() -> None:
    made = compared(ROWS)
    assert made.one("p").text == "AUC: federated 0.960; each site alone 0.850 to 0.900; all data in one place 0.970."
    assert [head.text for head in made.one("thead").all("th")][:-1] == ["", "Examples", "Brier", "AUC"]
    assert cells(made) == [
        ["north alone", "100", "0.200", "0.900"],
        ["south alone", "50", "0.250", "0.850"],
        ["Federated", "150", "0.100", "0.960"],
        ["All data in one place", "150", "", "0.970"],
    ]


def test_every_row_has_a_dot_and_the_federated_one_stands_out() -> None:
    made = compared(ROWS)
    dots = [float(dot.attributes["cx"]) for dot in made.all("circle", "dot")]
    assert dots[1] < dots[0] < dots[2] < dots[3]
    assert [row.one("th").text for row in made.one("tbody").all("tr", "federated")] == ["Federated"]
    assert [strip.attributes["class"] for strip in made.one("tbody").all("svg")] == ["strip alone", "strip alone", "strip federated", "strip pooled"]


def test_without_auc_the_last_fraction_is_drawn() -> None:
    made = compared([{"kind": "alone", "site": "a", "accuracy": 0.5, "c_index": 0.75, "examples": 9}, {"kind": "federated", "c_index": 0.8}])
    assert made.one("p").text == "C index: federated 0.800; the site alone 0.750."


def test_a_row_without_the_metric_has_no_dot() -> None:
    made = compared(
        [*ROWS, {"kind": "alone", "site": "late", "auc": None}, {"kind": "alone", "site": "nan", "auc": math.nan}, {"site": "odd", "auc": True}]
    )
    assert len(made.all("circle", "dot")) == 4
    assert cells(made)[4:] == [["late alone", "", "", ""], ["nan alone", "", "", "not finite"], ["odd", "", "", "yes"]]


def test_rows_of_another_kind_are_shown_without_a_verdict() -> None:
    made = compared([{"kind": "ensemble", "site": "x", "auc": 0.9}, "noise", {"auc": 0.8}])
    assert made.one("p").text == ""
    assert [row[0] for row in cells(made)] == ["ensemble x", ""]


def test_a_single_row_is_a_comparison_too() -> None:
    assert compared([{"kind": "federated", "auc": 0.9}]).one("p").text == "AUC: federated 0.900."


@pytest.mark.parametrize(("value", "text"), [(None, ""), (True, "yes"), (False, "no"), (0.5, "0.500"), (3, "3"), ("x", "x")])
def test_values_in_cells(value: Any, text: str) -> None:
    assert plain_text(value) == text
