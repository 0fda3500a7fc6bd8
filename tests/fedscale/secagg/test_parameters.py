"""Degree and threshold against the published table and exact probabilities."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale import cli
from fedscale.errors import PlanError
from fedscale.secagg import parameters
from fedscale.secagg.parameters import Parameters, Profile
from tests.conftest import shared_data

PROFILES = {"CURIOUS_SERVER": Profile.CURIOUS, "SEMI_MALICIOUS_SERVER": Profile.MALICIOUS, "NONE": Profile.CURIOUS}

# Rows of the table of the parameter finder that the authors of the paper published, and of their paper.
KNOWN = [
    (100, 0.05, 0.05, Profile.MALICIOUS, 16, 11),
    (100, 0.45, 0.45, Profile.CURIOUS, 92, 46),
    (1000, 0.1, 0.1, Profile.CURIOUS, 48, 27),
    (1000, 0.1, 0.1, Profile.MALICIOUS, 96, 67),
    (1000, 0.33, 0.0, Profile.MALICIOUS, 38, 37),
    (10, 0.05, 0.33, Profile.MALICIOUS, 8, 5),
    (10, 0.0, 0.0, Profile.MALICIOUS, 2, 2),
    (10_000, 0.1, 0.1, Profile.MALICIOUS, 122, 85),
]


@pytest.mark.parametrize(("nodes", "adversarial", "dropout", "profile", "degree", "threshold"), KNOWN)
def test_published_parameters(nodes: int, adversarial: float, dropout: float, profile: Profile, degree: int, threshold: int) -> None:
    assert parameters.find(nodes, adversarial, dropout, profile) == Parameters(degree, threshold)


@pytest.mark.requires("shared-data")
def test_every_row_of_the_table() -> None:
    folder = shared_data()
    assert folder is not None
    rows = json.loads((folder / "kat_secagg_graph.json").read_text())
    found = [parameters.find(row["n"], row["adversarial"], row["dropout"], PROFILES[row["server"]]) for row in rows]
    assert [(each.degree, each.threshold) for each in found] == [(row["degree"], row["threshold"]) for row in rows]
    assert len(rows) >= 50


def chance(nodes: int, marked: int, drawn: int, hit: int) -> float:
    """The hypergeometric probability in exact integers."""
    return math.comb(marked, hit) * math.comb(nodes - marked, drawn - hit) / math.comb(nodes, drawn)


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.integers(20, 200),
    adversarial=st.sampled_from([0.0, 0.05, 0.1, 0.2]),
    dropout=st.sampled_from([0.0, 0.05, 0.1, 0.25]),
    profile=st.sampled_from(Profile),
)
def test_found_parameters_keep_their_promises(nodes: int, adversarial: float, dropout: float, profile: Profile) -> None:
    """Recomputed with exact binomials: colluders short of the threshold, survivors up to it."""
    try:
        found = parameters.find(nodes, adversarial, dropout, profile)
    except PlanError:
        return
    colluding, surviving, degree, t = (
        math.floor((adversarial + 1e-14) * nodes),
        math.ceil((1 - dropout - 1e-14) * nodes),
        found.degree,
        found.threshold,
    )
    # Under a malicious server two answers together must not reach twice the threshold.
    needed = t if profile is Profile.CURIOUS else 2 * t - degree
    broken = sum(chance(nodes, colluding, degree, hit) for hit in range(max(needed, 0), degree + 1)) if needed > 0 else 1.0
    # The least threshold is two, as in the published finder, also where one would do.
    stuck = sum(chance(nodes, surviving, degree, hit) for hit in range(1 if t == 2 else t))
    assert nodes * broken <= 2.0**-41 * (1 + 1e-6)
    assert nodes * stuck < 2.0**-20 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("nodes", "adversarial", "dropout", "profile", "threshold"),
    [
        (3, 0.0, 0.0, Profile.MALICIOUS, 2),
        (4, 0.0, 0.1, Profile.MALICIOUS, 3),
        (10, 0.2, 0.1, Profile.MALICIOUS, 7),
        (10, 0.5, 0.1, Profile.MALICIOUS, 8),
        (3, 0.0, 0.3, Profile.CURIOUS, 2),
        (10, 0.6, 0.1, Profile.CURIOUS, 7),
        (50, 0.1, 0.1, Profile.MALICIOUS, 34),
    ],
)
def test_the_complete_graph(nodes: int, adversarial: float, dropout: float, profile: Profile, threshold: int) -> None:
    assert parameters.complete(nodes, adversarial, dropout, profile) == Parameters(nodes - 1, threshold)


@pytest.mark.parametrize("nodes", range(3, 51))
def test_on_the_complete_graph_two_answers_never_both_reach_the_threshold(nodes: int) -> None:
    colluding = nodes // 5
    assert 2 * parameters.complete(nodes, 0.2, 0.0, Profile.MALICIOUS).threshold > nodes + colluding
    assert parameters.complete(nodes, 0.2, 0.0, Profile.CURIOUS).threshold > colluding


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((2, 0.0, 0.0, Profile.CURIOUS), "not for 2"),
        ((1_000_001, 0.0, 0.0, Profile.CURIOUS), "not for 1000001"),
        ((100, -0.1, 0.0, Profile.CURIOUS), "no graph is safe"),
        ((100, 0.0, 1.0, Profile.CURIOUS), "no graph is safe"),
        ((100, 0.5, 0.45, Profile.CURIOUS), "no graph is safe"),
        ((100, 0.31, 0.3, Profile.MALICIOUS), "no graph is safe"),
    ],
)
def test_impossible_assumptions_are_refused(arguments: tuple[int, float, float, Profile], reason: str) -> None:
    for choose in (parameters.find, parameters.complete):
        with pytest.raises(PlanError, match=reason):
            choose(*arguments)


def test_what_no_graph_can_do_is_refused_with_advice() -> None:
    with pytest.raises(PlanError, match="secagg-silo"):
        parameters.find(10, 0.2, 0.3, Profile.MALICIOUS)
    with pytest.raises(PlanError, match="secagg-graph"):
        parameters.complete(51, 0.0, 0.0, Profile.CURIOUS)
    with pytest.raises(PlanError, match="6 of 10 nodes may remain, the threshold is 7"):
        parameters.complete(10, 0.0, 0.4, Profile.MALICIOUS)


def test_the_command_prints_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["secagg", "parameters", "--nodes", "1000", "--adversarial", "0.1", "--dropout", "0.1"]
    assert cli.main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "data": {"degree": 96, "threshold": 67}}
    assert cli.main([*asked, "--profile", "curious", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {"degree": 48, "threshold": 27}
    assert cli.main([*asked]) == 0
    assert "2^-40" in capsys.readouterr().out
    assert cli.main([*asked, "--suite", "secagg-silo"]) == 2
    assert "at most 50 nodes" in capsys.readouterr().err
