"""Several runs on one page: a table, and curves that keep their style on every chart."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedscale.errors import ConfigError
from fedscale.record import RunRecord
from fedscale.report.versus import MARK, comparison_html, comparison_rows, write_comparison
from tests.fedscale.report.outline import Element, outline
from tests.fedscale.sample_run import round_of, run_of


def run(losses: list[float], seconds: float = 2.0, **changes: object) -> RunRecord:
    rounds = [round_of(at, "evaluate", metrics={"loss": loss, "auc": 1 - loss}, seconds=seconds) for at, loss in enumerate(losses, 1)]
    return run_of(*rounds, **changes)


RUNS = {"slow": run([0.5, 0.2, 0.1], 100.0), "fast": run([0.4, 0.3], 30.0), "<odd>": run([])}


def page(runs: dict[str, RunRecord] = RUNS) -> Element:
    return outline(comparison_html(runs))


def test_the_best_value_of_each_metric_is_marked() -> None:
    head, rows = comparison_rows(RUNS)
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells["slow"][">Loss, evaluation"] == f"0.100 {MARK}"
    assert cells["slow"][">AUC, evaluation"] == f"0.900 {MARK}"
    assert cells["fast"][">Loss, evaluation"] == "0.300"
    assert cells["<odd>"][">Loss, evaluation"] == ""
    assert (cells["fast"][">time"], cells["fast"][">rounds"], cells["fast"]["model"]) == ("1 min 0 s", "2", "bb22")


def test_nothing_is_best_among_equals() -> None:
    _, rows = comparison_rows({"a": run([0.5]), "b": run([0.5]), "c": run([math.nan])})
    assert not any(MARK in cell for row in rows for cell in row)


def test_each_run_has_one_curve_a_chart_in_one_style() -> None:
    figures = page().all("figure")
    assert [figure.one("h3").text for figure in figures] == ["Loss, evaluation", "AUC, evaluation"] * 3
    for figure in figures[:4]:
        named = {curve.one("title").text: curve for curve in figure.all("path", "curve") if curve.all("title")}
        assert set(named) == {"slow", "fast"}
        styles = [group.attributes["class"] for group in figure.one("svg", "chart").all("g")]
        assert styles == ["c0 d0 few", "c1 d1 few"]


def test_curves_run_over_rounds_and_over_time() -> None:
    by_round, by_time, until_first = page().all("figure")[::2]
    assert "round 3, slow: 0.100" in by_round.text
    assert "min 5, slow: 0.100" in by_time.text
    assert "min 1, fast: 0.300" in by_time.text
    assert "min 1, fast: 0.300" in until_first.text
    assert "slow" not in until_first.text
    assert [part.text for part in page({"a": RUNS["slow"], "b": RUNS["slow"]}).all("h2")] == ["How they ended", "By round", "By time"]


def test_names_are_escaped_and_nothing_is_loaded() -> None:
    text = comparison_html(RUNS)
    assert "<odd>" not in text
    assert page().one("h1").text == "slow · fast · <odd>"
    assert "http://" not in text.replace("http-equiv", "")
    assert "<script" not in text


def test_a_page_is_written_where_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_comparison(RUNS, path)
    assert path.read_text(encoding="utf-8") == comparison_html(RUNS)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_comparison(RUNS, path / "below")
