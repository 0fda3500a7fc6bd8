"""An epsilon and its assumptions."""

from __future__ import annotations

import json

from fedscale.privacy.accountant import epsilon, epsilon_rdp
from fedscale.privacy.events import Spend, from_json
from fedscale.privacy.statement import KNOWN, NONE, SECRET, ZEROED, state

SAMPLED = [Spend("poisson_subsampled_gaussian", 1.0, 0.05, 40), Spend("gaussian", 10.0)]


def test_a_secret_sample_counts() -> None:
    said = state(SAMPLED, 1e-5, "patient")
    assert (said.unit, said.sampling, said.relation) == ("patient", SECRET, "add or remove one unit")
    assert said.epsilon == epsilon(SAMPLED, 1e-5)
    assert said.renyi == epsilon_rdp(SAMPLED, 1e-5)
    assert said.without_amplification == epsilon([Spend("gaussian", 1.0, 1.0, 40), Spend("gaussian", 10.0)], 1e-5)
    assert said.without_amplification > 5 * said.epsilon


def test_a_sample_that_the_adversary_drew_counts_for_nothing() -> None:
    said = state(SAMPLED, 1e-5, "node", secret=False)
    assert said.sampling == KNOWN
    assert said.epsilon == said.without_amplification == state(SAMPLED, 1e-5, "node").without_amplification


def test_where_nobody_samples_both_are_the_same() -> None:
    said = state([Spend("gaussian", 2.0, 1.0, 3)], 1e-6, "node")
    assert said.sampling == NONE
    assert said.epsilon == said.without_amplification > 0


def test_a_tree_is_about_zeroing() -> None:
    assert state([Spend("tree_aggregation", 5.0, 1.0, 64)], 1e-6, "device").relation == ZEROED


def test_as_json_nothing_is_left_out() -> None:
    said = state(SAMPLED, 1e-5, "record")
    tree = json.loads(json.dumps(said.to_json()))
    assert from_json(tree.pop("spends")) == tuple(SAMPLED)
    assert tree["epsilon"] == said.epsilon
    assert set(tree) == {"unit", "relation", "sampling", "delta", "epsilon", "without_amplification", "renyi", "accountant"}
    assert "dp-accounting" in tree["accountant"]
