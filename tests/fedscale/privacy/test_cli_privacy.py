"""``fedscale privacy epsilon``, ``noise`` and ``plan``."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedscale.learner import Training
from fedscale.privacy.accountant import epsilon, epsilon_rdp
from fedscale.privacy.dp import DP
from fedscale.privacy.events import Spend, from_json, to_json
from fedscale.privacy.outlook import prospects, trades
from tests.command import fedscale

EVENTS = [Spend("poisson_subsampled_gaussian", 1.0, 0.05, 20), Spend("laplace", 40.0), Spend("skellam", 12.0, 0.5, 2)]
JOB = """
[job]
name = "hearts"
[strategy]
rounds = 3
[clients]
min_per_round = 4
[evaluate]
every = 0
[privacy]
epsilon = 2.0
delta = 1e-5
"""


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.json"
    path.write_text(json.dumps(to_json(EVENTS)), encoding="utf-8")
    return path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB, encoding="utf-8")
    return path


def test_epsilon_of_a_list(events: Path) -> None:
    data = fedscale("privacy", "epsilon", events, "--delta", "1e-5", "--json").data
    assert (data["pld"], data["rdp"]) == (epsilon(EVENTS, 1e-5), epsilon_rdp(EVENTS, 1e-5))
    assert from_json(data["statement"]["spends"]) == tuple(EVENTS)
    assert data["statement"]["without_amplification"] > data["pld"]


def test_epsilon_for_a_person_comes_with_its_assumptions(events: Path) -> None:
    done = fedscale("privacy", "epsilon", events, "--delta", "1e-5", "--unit", "patient")
    assert done.code == 0
    for part in (f"{epsilon(EVENTS, 1e-5):.6g}", "patient", "add or remove one unit", "Poisson", "1e-05", "dp-accounting"):
        assert part in done.out


@pytest.mark.parametrize(
    ("content", "told", "where"),
    [
        ("{}", "must be a list", "events.json"),
        ("[", "not JSON", "events.json"),
        ('[{"mechanism": "gaussian", "noise_multiplier": 0}]', "noise_multiplier must be a number", "events.json[0].noise_multiplier"),
        ('[{"mechanism": "gauss", "noise_multiplier": 1}]', "unknown mechanism", "events.json[0].mechanism"),
    ],
)
def test_malformed_events_are_named(events: Path, content: str, told: str, where: str) -> None:
    events.write_text(content, encoding="utf-8")
    error = fedscale("privacy", "epsilon", events, "--delta", "1e-5", "--json").error
    assert error["exit_code"] == 2
    assert told in error["what"]
    assert error["where"].endswith(where)


def test_a_missing_file_and_a_bad_delta_are_usage(events: Path) -> None:
    assert fedscale("privacy", "epsilon", events.with_name("none.json"), "--delta", "1e-5", "--json").error["what"] == "cannot read the events"
    assert fedscale("privacy", "epsilon", events, "--delta", "2", "--json").error["where"] == "delta"


def test_noise_is_the_inverse_of_epsilon(tmp_path: Path) -> None:
    asked = ("--epsilon", "2", "--delta", "1e-6", "--sampling-rate", "0.1", "--steps", "30")
    data = fedscale("privacy", "noise", *asked, "--json").data
    path = tmp_path / "back.json"
    path.write_text(json.dumps(data["statement"]["spends"]), encoding="utf-8")
    again = fedscale("privacy", "epsilon", path, "--delta", "1e-6", "--json").data
    assert 1.9999 < again["pld"] == data["pld"] <= 2.0
    assert again["statement"]["spends"] == [
        {"mechanism": "poisson_subsampled_gaussian", "noise_multiplier": data["noise_multiplier"], "sampling_rate": 0.1, "steps": 30}
    ]


def test_noise_counts_what_was_spent(events: Path) -> None:
    asked = ("privacy", "noise", "--epsilon", "9", "--delta", "1e-5", "--mechanism", "gaussian", "--steps", "4", "--json")
    fresh, later = fedscale(*asked).data, fedscale(*asked, "--spent", events).data
    assert later["noise_multiplier"] > fresh["noise_multiplier"]
    assert 8.999 < later["pld"] <= 9.0
    assert len(later["statement"]["spends"]) == len(EVENTS) + 1


def test_noise_for_a_person() -> None:
    done = fedscale("privacy", "noise", "--epsilon", "1", "--delta", "1e-5", "--mechanism", "gaussian")
    assert "3.73063" in done.out
    assert fedscale("privacy", "noise", "--epsilon", "-1", "--delta", "1e-5", "--json").error["where"] == "epsilon"


def test_the_plan_before_anybody_trains(job: Path) -> None:
    plot = job.with_name("there") / "plot.html"
    data = fedscale("privacy", "plan", job, "--units", "300", "--plot", plot, "--json").data
    assert (data["rounds"], data["units"], data["plot"]) == (3, [300] * 4, str(plot))
    by_name = {each["mechanism"]: each for each in data["mechanisms"]}
    assert set(by_name) == {"dpsgd", "union", "fedavg"}
    assert [name for name, each in by_name.items() if each["chosen"]] == ["dpsgd"]
    for each in by_name.values():
        said = each["statement"]
        assert 1.9999 < said["epsilon"] <= 2.0
        assert epsilon(from_json(said["spends"]), 1e-5) == pytest.approx(said["epsilon"], abs=1e-9)
        assert {"unit", "relation", "sampling", "delta", "accountant"} < set(said)
        assert 0 < each["per_round"] < said["epsilon"] <= said["without_amplification"]
    # Noise in shares over the union is a fraction of what each site would need alone.
    assert by_name["union"]["noise"] < by_name["dpsgd"]["noise"] / 2 < by_name["fedavg"]["noise"]
    assert by_name["fedavg"]["statement"]["unit"] == "node"


def test_the_plot_is_one_page_that_loads_nothing(job: Path) -> None:
    plot = job.with_name("plot.html")
    assert fedscale("privacy", "plan", job.parent, "--units", "50", "--units", "80", "--plot", plot).code == 0
    page = plot.read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 1
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|src=", page)
    for part in ("hearts", "dpsgd, 50 units", "dpsgd, 80 units", "union, 130 units", "fedavg", "add or remove one unit", "Poisson", "1e-05"):
        assert part in page


def test_the_plan_for_a_person(job: Path) -> None:
    done = fedscale("privacy", "plan", job, "--units", "50", "--sites", "2")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines() if line.startswith((" dpsgd", " union", " fedavg"))]
    assert rows[0][:4] == ["dpsgd", "*", "record", "50"]
    assert rows[1][:3] == ["union", "record", "100"]
    assert "sample known: epsilon without amplification" in done.out
    asked = "epsilon 2 at delta 1e-05 for each record; a site whose cap has less room refuses before its first round, and nothing of it is spent"
    assert asked in " ".join(done.out.split())
    needs = fedscale("privacy", "plan", job, "--units", "50", "--json").data["each_site_needs"]
    assert needs == {"epsilon": 2.0, "delta": 1e-5, "unit": "record"}


def test_a_plan_that_hides_nodes_needs_no_units(job: Path) -> None:
    text = JOB.replace("epsilon = 2.0", 'epsilon = 2.0\nunit = "node"') + "[secagg]\n"
    job.write_text(text, encoding="utf-8")
    data = fedscale("privacy", "plan", job, "--json").data
    assert [(each["mechanism"], each["chosen"]) for each in data["mechanisms"]] == [("fedavg", True)]
    assert data["mechanisms"][0]["statement"]["sampling"] == "none"


@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        (("[privacy]\nepsilon = 2.0\ndelta = 1e-5\n", ""), ("--units", "9"), "asks for no privacy"),
        (("", ""), (), "how many units"),
        (("", ""), ("--units", "9", "--units", "8", "--sites", "3"), "2 sizes for 3 sites"),
        (("", ""), ("--units", "0"), "at least one unit"),
    ],
)
def test_what_a_plan_cannot_tell_is_asked_for(job: Path, change: tuple[str, str], words: tuple[str, ...], told: str) -> None:
    job.write_text(JOB.replace(*change), encoding="utf-8")
    error = fedscale("privacy", "plan", job, *words, "--json").error
    assert error["exit_code"] == 2
    assert told in error["what"]


def test_a_plot_that_cannot_be_written_is_refused(job: Path) -> None:
    error = fedscale("privacy", "plan", job, "--units", "9", "--plot", job / "plot.html", "--json").error
    assert error["what"] == "the plot cannot be written"


def test_more_noise_costs_less() -> None:
    (alone,) = (each for each in prospects(DP(epsilon=1.0, delta=1e-6), Training(), 2, [200], masked=False) if each.chosen)
    found = trades(alone, 1e-6)
    assert [trade.noise for trade in found] == sorted(trade.noise for trade in found)
    assert [trade.epsilon for trade in found] == sorted((trade.epsilon for trade in found), reverse=True)
    assert any(trade.epsilon == pytest.approx(1.0, abs=1e-5) for trade in found)
    # Twice the noise in a step is twice the noise multiplier.
    assert found[2].noise / found[0].noise == pytest.approx(found[2].noise_multiplier / found[0].noise_multiplier) == pytest.approx(2.0)
