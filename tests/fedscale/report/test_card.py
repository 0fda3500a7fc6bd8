"""The card of a model: what it says, what it keeps to itself, and that all three forms say the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscale.errors import ConfigError, Conflict
from fedscale.report import card_beside, card_files, card_page, model_card
from fedscale.report.card import TO_FILL, markdown
from tests.fedscale.report.outline import outline, titles
from tests.fedscale.sample_run import COMPARISON, MEMORY, TIMEOUT, round_of, run_of

PLAN = """[job]
name = "heart-risk"
data = "heart"
[strategy]
name = "fedavg"
rounds = 2
[evaluate]
min_cell = 20
[privacy]
epsilon = 4.0
delta = 1e-5
"""
SITES = {"north": {"auc": 0.9, "loss": 0.2}, "south": {"auc": 0.7, "loss": 0.4}}
STATEMENT = {"run": "r-1", "site": "north", "epsilon": 3.2, "delta": 1e-5, "unit": "record", "spends": [1, 2, 3]}


def told(**changes: Any) -> dict[str, Any]:
    rounds = (
        round_of(1, failures={"west": TIMEOUT}),
        round_of(1, "evaluate", metrics={"auc": 0.8, "loss": 0.3}, sites=SITES),
        round_of(2, failures={"west": MEMORY}),
    )
    statements = changes.pop("statements", [STATEMENT, {**STATEMENT, "run": "another", "site": "south"}])
    return model_card(run_of(*rounds, **{"plan_toml": PLAN, **changes}), statements)


def test_a_card_names_the_worst_site_of_each_metric() -> None:
    found = {(each["phase"], each["name"]): each for each in told()["metrics"]}
    assert (found["evaluate", "auc"]["worst_site"], found["evaluate", "auc"]["worst"]) == ("south", 0.7)
    assert (found["evaluate", "loss"]["worst_site"], found["evaluate", "loss"]["worst"]) == ("south", 0.4)
    assert found["evaluate", "auc"]["all"] == 0.8


def test_who_contributed_and_who_failed_stands_there_round_by_round() -> None:
    made = told()
    assert [(row["round"], row["phase"], row["answered"], row["failed"]) for row in made["rounds"]] == [
        (1, "train", 2, {"west": "timeout"}),
        (1, "evaluate", 2, {}),
        (2, "train", 2, {"west": "memory"}),
    ]
    assert made["data"]["sites"]["west"] == {"answered": 0, "failed": 2, "examples": ""}


def test_small_cells_are_not_told() -> None:
    small = [{"kind": "alone", "site": "north", "examples": 19}, {"kind": "alone", "site": "south", "examples": 20}, *COMPARISON[1:]]
    sites = told(extra={"comparison": small})["data"]["sites"]
    assert (sites["north"]["examples"], sites["south"]["examples"]) == ("fewer than 20", "20")
    assert told()["data"]["sites"]["north"]["examples"] == "at least 20", "its metrics are shown, so it has as many"
    text = markdown(told(extra={"comparison": small}))
    assert "19" not in text.partition("## Training")[0].partition("## Data")[2]


@pytest.mark.parametrize(("weight", "examples"), [(19.0, ""), (20.0, "20"), (0.0, "")])
def test_a_small_sum_is_not_told_either(weight: float, examples: str) -> None:
    made = model_card(run_of(round_of(1, weight=weight), plan_toml=PLAN.partition("[privacy]")[0]))
    assert made["data"]["examples_in_last_round"] == examples


@pytest.mark.parametrize("plan", [PLAN, PLAN.partition("[privacy]")[0].replace("rounds", 'weighting = "equal"\nrounds')], ids=["private", "equal"])
def test_a_number_of_sites_is_not_taken_for_one_of_examples(plan: str) -> None:
    made = model_card(run_of(round_of(1, weight=30.0), round_of(2, weight=25.0), plan_toml=plan))
    assert made["data"]["examples_in_last_round"] == ""


def test_epsilon_comes_from_the_statements_of_sites_in_this_run() -> None:
    privacy = told(extra={"privacy": {"epsilon": 4.0, "mechanism": "dpsgd"}, "ledgers": {"north": "7:ab"}})["privacy"]
    assert privacy["sites"] == {"north": {"epsilon": 3.2, "delta": 1e-5, "unit": "record"}}
    assert privacy["promised"] == {"epsilon": 4.0, "mechanism": "dpsgd"}
    assert privacy["ledgers"] == {"north": "7:ab"}
    simulated = told(statements=[], extra={"privacy": {"epsilon": 3.9, "sites": {"south": 3.9}}})["privacy"]
    assert simulated["sites"] == {"south": {"epsilon": 3.9}}


def test_the_three_forms_say_the_same(tmp_path: Path) -> None:
    made = told(extra={"hashes": {"app": "cc33"}, "versions": {"fedscale": "9"}, "secagg": {"mode": "protocol"}})
    files = card_files(made, tmp_path / "card")
    assert json.loads(files["card.json"].read_text()) == made
    page, text = outline(files["card.html"].read_text()), files["card.md"].read_text()
    sections = ["Intended use", "Model", "Data", "Training", "Privacy", "Secure aggregation", "Metrics", "Contributors", "To repeat it", "Plan"]
    assert titles(page) == sections
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == sections
    for words in (*TO_FILL.values(), "bb22", "aa11", "cc33", "south", "3.200", "west (timeout)", "protocol", "min_cell = 20"):
        assert words in page.text, words
        assert words in text.replace("\\", ""), words


def test_settings_are_not_rounded() -> None:
    plan = PLAN.replace("rounds = 2", "rounds = 2\nlr = 0.0005\n[train.optimizer]\nweight_decay = 1e-5")
    text = markdown(told(plan_toml=plan)).replace("\\", "")
    assert "| strategy.lr | 0.0005 |" in text
    assert "| train.optimizer.weight_decay | 1e-05 |" in text


def test_what_people_must_fill_in_is_left_open() -> None:
    made = told()
    assert set(made["intended_use"].values()) == {""}
    assert markdown(made).count("to be filled in") == len(TO_FILL)


def test_a_run_without_rounds_or_plan_has_a_card_too() -> None:
    made = model_card(run_of(plan_toml="no toml [", model_digest="", extra={"comparison": "x"}))
    assert (made["metrics"], made["rounds"], made["model"]["sha256"]) == ([], [], "")
    assert "no model" in markdown(made)
    assert "none" in card_page(made)


def test_nothing_that_a_site_or_a_plan_says_becomes_markup() -> None:
    evil = "<script>alert(1)</script>|`x`"
    made = told(name=evil, nodes=(evil,), plan_toml=PLAN + "# ```\n")
    assert outline(card_page(made)).all("script") == []
    text = markdown(made)
    assert "<script>" not in text
    assert markdown(told(name="a\x1b[2J\u202e\x07\nb")).startswith("# Model card: a\ufffd\\[2J\ufffd\ufffd b\n"), "nor steers a terminal"
    assert text.count("````") == 2, "the fence is longer than any in the plan"


def test_numbers_that_are_not_finite_are_null() -> None:
    made = model_card(run_of(round_of(1, metrics={"loss": math.nan}, sites={}), plan_toml=PLAN))
    assert made["metrics"][0]["all"] is None
    json.dumps(made, allow_nan=False)


def test_a_card_that_people_have_filled_in_is_left_alone(tmp_path: Path) -> None:
    card_files(told(), tmp_path)["card.md"].write_text("for triage only")
    with pytest.raises(Conflict, match="card already"):
        card_files(told(), tmp_path)
    assert (tmp_path / "card.md").read_text() == "for triage only"


@pytest.mark.parametrize("name", ["card.html", "card.md", "card.json"])
@pytest.mark.parametrize("change", [lambda path: path.write_text(path.read_text() + "x"), lambda path: path.write_bytes(b"\xff"), Path.unlink])
def test_whatever_of_a_card_was_changed_keeps_it_and_what_was_not_gives_way(tmp_path: Path, name: str, change: Callable[[Path], object]) -> None:
    card_files(told(), tmp_path)
    assert set(card_files(told(name="newer"), tmp_path)) == {"card.html", "card.md", "card.json"}
    change(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if change is Path.unlink and name != "card.json":
        assert card_beside(run_of(), tmp_path)
    else:
        assert card_beside(run_of(), tmp_path) == {}
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["card.html", "card.md", "card.json"])
def test_whatever_cannot_be_read_is_not_taken_for_a_card_that_nobody_touched(tmp_path: Path, name: str) -> None:
    card_files(told(), tmp_path)[name].unlink()
    (tmp_path / name).mkdir()
    assert card_beside(run_of(), tmp_path) == {}
    assert (tmp_path / name).is_dir()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        card_files(told(), tmp_path / "file")
