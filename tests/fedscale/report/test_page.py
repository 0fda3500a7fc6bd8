"""The words of a page: the head at a glance, each section only where there is something to say, every number in its place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fedscale.record import RunRecord
from fedscale.report import html
from tests.fedscale.report.outline import Element, outline, section, titles
from tests.fedscale.sample_run import TIMEOUT, full_run, large_run, round_of, run_of


def page_of(record: RunRecord) -> Element:
    return outline(html(record))


def pairs(part: Element) -> dict[str, str]:
    return dict(zip((e.text for e in part.all("dt")), (e.text for e in part.all("dd")), strict=True))


# ---------------------------------------------------------------------------------------------------------------- the head


def test_the_head_names_the_run_at_a_glance() -> None:
    header = page_of(full_run()).one("header")
    assert header.one("h1").text == "heart-risk"
    assert header.one("p", "facts").text == "✓ finished2 nodes · 2 rounds · 8 s · 12 MB moved · run r-1"


@pytest.mark.parametrize(
    ("status", "tone", "sign"),
    [
        ("finished", "good", "✓"),
        ("Completed", "good", "✓"),
        ("failed", "bad", "✕"),
        ("refused", "bad", "✕"),
        ("stopped", "neutral", "●"),
        ("", "neutral", "●"),
    ],
)
def test_status_is_told_by_word_sign_and_colour(status: str, tone: str, sign: str) -> None:
    pill = page_of(run_of(round_of(1), status=status)).one("span", "status")
    assert pill.attributes["class"] == f"status {tone}"
    assert pill.text == f"{sign} {status}"


def test_a_reason_is_shown_where_there_is_one() -> None:
    assert page_of(run_of(status="failed", reason="too few nodes")).one("p", "reason", "bad").text == "too few nodes"
    assert page_of(run_of(round_of(1))).all("p", "reason") == []


def test_a_run_without_a_name_goes_by_its_id() -> None:
    assert page_of(run_of(round_of(1), name="")).one("h1").text == "r-1"


def test_final_metrics_are_big_with_round_and_spread() -> None:
    tiles = [tuple(child.text for child in tile.children if isinstance(child, Element)) for tile in page_of(full_run()).all("div", "tile")]
    assert tiles == [
        ("AUC", "0.875", "evaluation, round 2", "sites 0.750–0.938"),
        ("Loss", "0.500", "training, round 2", "sites 0.450–0.550"),
        ("Privacy, epsilon", "3.88", "delta 1e-5", "unit record"),
    ]


def test_a_diverged_metric_says_so() -> None:
    tile = page_of(run_of(round_of(1, metrics={"loss": math.nan}, sites={"north": {"loss": math.inf}}))).one("div", "tile")
    assert tile.one("dd", "big").text == "not finite"
    assert tile.all("dd", "small")[-1].text == ""


@pytest.mark.parametrize("epsilon", [None, True, "4", math.inf])
def test_an_epsilon_that_is_no_number_is_not_made_big(epsilon: Any) -> None:
    assert page_of(run_of(extra={"privacy": {"epsilon": epsilon}})).all("div", "tile") == []


def test_only_the_first_metrics_are_big() -> None:
    many = round_of(1, metrics={f"m{at}": float(at) for at in range(20)}, sites={})
    assert [tile.one("dt").text for tile in page_of(run_of(many)).all("div", "tile")] == ["M0", "M1", "M2", "M3", "M4", "M5"]


def test_of_a_first_round_that_failed_the_page_says_who_failed_and_draws_no_curve() -> None:
    lost = round_of(1, answered=(), metrics={}, sites={}, failures={"north": TIMEOUT, "south": TIMEOUT}, weight=0.0)
    page = page_of(run_of(lost, status="failed", reason="round 1 (train): 0 of 2 nodes answered"))
    assert titles(page) == ["Metrics", "Participation", "Failures", "Time and traffic", "Plan", "To repeat this run"]
    assert "0 rounds" in page.text
    assert "north: 1" in page.text


def test_zero_rounds_leave_the_plan_and_a_word() -> None:
    page = page_of(run_of(status="failed", reason="too few nodes"))
    assert titles(page) == ["Plan", "To repeat this run"]
    assert page.one("p", "empty").text.startswith("No round was closed")
    assert page.all("svg") == []
    assert page.all("dl", "tiles") == []


# ---------------------------------------------------------------------------------------------------------------- sections


def test_sections_come_in_the_order_of_interest() -> None:
    assert titles(page_of(full_run())) == [
        "Alone, federated, in one place",
        "Metrics",
        "Participation",
        "Failures",
        "Privacy",
        "Time and traffic",
        "Plan",
        "To repeat this run",
        "Further facts",
    ]


def test_sections_without_content_are_left_out() -> None:
    assert titles(page_of(run_of(round_of(1)))) == ["Metrics", "Participation", "Time and traffic", "Plan", "To repeat this run"]


def test_a_run_without_metrics_says_so() -> None:
    assert section(page_of(run_of(round_of(1, metrics={}, sites={}))), "Metrics").one("p", "empty").text.startswith("No metric to show: ")


def test_a_run_that_failed_in_its_first_round_does_not_say_that_nobody_asked_for_metrics() -> None:
    failed = run_of(round_of(1, metrics={}, sites={}, answered=(), failures={"heart": TIMEOUT}), status="failed")
    assert section(page_of(failed), "Metrics").one("p", "empty").text == "No metric to show: no round came to its end; the failures below say why."


def test_failures_are_grouped_with_cause_place_and_advice() -> None:
    rows = section(page_of(full_run()), "Failures").all("tr")[1:]
    cells = [[child.text for child in row.children if isinstance(child, Element)] for row in rows]
    assert cells == [
        ["timeout", "2", "no answer within 20 min", "round deadline", "check the line", "south: 1–2"],
        ["memory", "1", "the worker ran out of memoryframesapp.py:41 in forward", "app.py:41", "lower train.batch_size", "north: 2"],
    ]
    assert rows[0].all("details") == []
    assert rows[1].one("details").one("pre").text == "app.py:41 in forward"


def test_a_failure_of_many_nodes_names_some_and_counts_the_rest() -> None:
    record = run_of(round_of(1, failures={f"n{at}": TIMEOUT for at in range(30)}))
    cell = section(page_of(record), "Failures").all("td")[-1]
    assert [child.text for child in cell.children if isinstance(child, Element)] == [*(f"n{at}: 1" for at in range(8)), "and 22 more nodes"]


def test_very_many_different_failures_are_cut_with_a_word() -> None:
    part = section(page_of(run_of(round_of(1, failures={f"n{at}": replace(TIMEOUT, what=f"no {at}") for at in range(250)}))), "Failures")
    assert len(part.all("tr")) == 201
    assert part.one("p", "note").text == "50 further failures are listed in metrics.json."


def test_how_sums_were_computed_is_said_where_they_were_masked() -> None:
    run = full_run()
    masked = replace(run, extra=run.extra | {"secagg": {"mode": "protocol", "profile": "malicious"}})
    assert pairs(section(page_of(masked), "Secure aggregation")) == {"mode": "protocol", "profile": "malicious"}
    assert "Secure aggregation" not in html(run)


def test_privacy_is_listed_with_every_site() -> None:
    assert pairs(section(page_of(full_run()), "Privacy")) == {"epsilon": "3.875", "delta": "1e-5", "unit": "record", "sites · north": "3.500"}


def test_traffic_is_told_in_a_sentence_and_in_numbers() -> None:
    part = section(page_of(full_run()), "Time and traffic")
    assert part.all("p")[0].text == "8 s in all, 4 s a round; 4 MB to the nodes, 8 MB from them."
    rows = part.one("details").all("tr")
    assert [cell.text for cell in rows[0].all("th")] == [
        "Round",
        "Phase",
        "Answered",
        "Failed",
        "Weight",
        "Time",
        "To nodes",
        "From nodes",
        "Metrics",
    ]
    assert [cell.text for cell in rows[1].all("td")] == ["1", "training", "1", "1", "300", "2 s", "1 MB", "2 MB", "Loss 1.000"]
    assert len(rows) == 5


def test_a_long_run_shows_its_last_rounds_in_numbers() -> None:
    details = section(page_of(large_run(sites=3, rounds=700)), "Time and traffic").one("details")
    assert details.one("summary").text == "The last 200 phases in numbers; metrics.csv has all"
    rows = details.all("tr")[1:]
    assert (len(rows), rows[0].all("td")[0].text, rows[-1].all("td")[0].text) == (200, "501", "700")


def test_the_plan_is_shown_as_it_was() -> None:
    record = run_of(round_of(1), plan_toml='[job]\n# "quoted" <b>\nseed = 7\n')
    assert section(page_of(record), "Plan").one("pre").text == record.plan_toml
    assert section(page_of(run_of(plan_toml=" \n")), "Plan").one("p", "empty").text == "No plan was kept."


def test_reproduction_lists_hashes_seeds_and_versions() -> None:
    assert pairs(section(page_of(full_run()), "To repeat this run")) == {
        "plan hash": "aa11",
        "model hash": "bb22",
        "bundle hash": "cc33",
        "seed": "7",
        "seeds · partition": "11",
        "fedscale": "0.1.0",
        "numpy": "2.4.6",
    }


@pytest.mark.parametrize(
    ("plan", "extra", "seed"),
    [
        ("[job]\nseed = 7", {}, "7"),
        ("[job]\nseed = 7", {"seed": 8}, "8"),
        ("seed = 7", {}, None),
        ("job = 3", {}, None),
        ("= broken", {}, None),
        ("a=" + "[" * 5000, {}, None),
    ],
)
def test_the_seed_is_the_runs_own_or_else_the_plans(plan: str, extra: dict[str, int], seed: str | None) -> None:
    assert pairs(section(page_of(run_of(plan_toml=plan, extra=extra)), "To repeat this run")).get("seed") == seed


def test_a_run_without_hashes_has_nothing_to_repeat() -> None:
    assert titles(page_of(run_of(plan_toml="", plan_hash="", model_digest=""))) == ["Plan"]


def test_further_facts_are_listed_by_name() -> None:
    assert pairs(section(page_of(full_run()), "Further facts")) == {"secure aggregation": "yes", "tags": "pilot, 2"}


@pytest.mark.parametrize("value", [None, 3, "text", [], [1, 2], {"kind": "alone"}, [{"kind": "alone", "auc": "high"}], [{"auc": True}]])
def test_a_comparison_of_another_form_is_passed_over(value: Any) -> None:
    assert "Alone, federated, in one place" not in titles(page_of(run_of(round_of(1), extra={"comparison": value})))
