"""Noise of running sums: its variance, its independence, and the same noise whenever it is drawn."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedscale.errors import PlanError
from fedscale.privacy import tree as module
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Spend
from fedscale.privacy.noise import Floats, gaussian
from fedscale.privacy.tree import Tree, nodes_of

KEY = bytes(range(32))
TREE = Tree(37, 20_000, 3.0, KEY)


def covered(level: int, index: int) -> range:
    return range((index << level) + 1, ((index + 1) << level) + 1)


@pytest.mark.parametrize("after", range(1, 70))
def test_the_nodes_cover_each_round_once(after: int) -> None:
    rounds = [number for node in nodes_of(after) for number in covered(*node)]
    assert sorted(rounds) == list(range(1, after + 1))
    assert len(list(nodes_of(after))) == after.bit_count()


def test_a_round_is_in_at_most_one_node_of_each_level() -> None:
    every = {node for after in range(1, 38) for node in nodes_of(after)}
    for number in range(1, 38):
        levels = [level for level, index in every if number in covered(level, index)]
        assert len(levels) == len(set(levels)) <= (37).bit_length()


@pytest.mark.parametrize("after", [1, 2, 3, 7, 16, 31, 37])
def test_variance_is_one_node_s_a_bit(after: int) -> None:
    assert TREE.running(after).std() == pytest.approx(3.0 * after.bit_count() ** 0.5, rel=0.02)


def test_steps_add_up_to_the_running_noise() -> None:
    total = np.zeros(TREE.size)
    for number in range(1, 12):
        total += TREE.step(number)
    np.testing.assert_allclose(total, TREE.running(11), atol=1e-9)
    assert not TREE.running(0).any()


@pytest.mark.parametrize(("number", "nodes"), [(1, ["0/0"]), (7, ["0/6"]), (8, ["3/0", "2/0", "1/2", "0/6"]), (12, ["2/2", "1/4", "0/10"])])
def test_a_step_draws_only_the_nodes_that_come_and_go(number: int, nodes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes | None] = []

    def watched(size: int, sigma: float, key: bytes | None = None) -> Floats:
        drawn.append(key)
        return gaussian(size, sigma, key)

    monkeypatch.setattr(module, "gaussian", watched)
    noise = TREE.step(number)
    keys = [hashlib.blake2b(node.encode(), key=KEY, digest_size=32).digest() for node in nodes]
    assert drawn == keys
    of_nodes = [gaussian(TREE.size, 3.0, key) for key in keys]
    np.testing.assert_allclose(noise, of_nodes[0] - sum(of_nodes[1:]), atol=1e-9)


def test_nodes_have_noise_of_their_own() -> None:
    # Rounds 32 and 37 share the node of rounds 1 to 32; 37 has two more.
    early, all_of = TREE.running(32), TREE.running(37)
    assert np.corrcoef(early, all_of)[0, 1] == pytest.approx(1 / 3**0.5, abs=0.03)
    assert abs(np.corrcoef(early, all_of - early)[0, 1]) < 0.03
    assert abs(np.corrcoef(TREE.running(1), TREE.running(2))[0, 1]) < 0.03


def test_the_same_key_the_same_tree() -> None:
    np.testing.assert_array_equal(TREE.running(5), Tree(37, 20_000, 3.0, KEY).running(5))
    assert not np.array_equal(TREE.running(5), Tree(37, 20_000, 3.0, bytes(32)).running(5))
    assert "key" not in repr(TREE)


def test_a_tree_costs_its_levels_and_beats_noise_on_each_round() -> None:
    spend = TREE.spend(1.5)
    assert spend == Spend("tree_aggregation", 2.0, 1.0, 37)
    assert epsilon([spend], 1e-6) == epsilon([Spend("gaussian", 2.0, 1.0, 6)], 1e-6)
    # The same epsilon with fresh noise in each round needs sigma * sqrt(37 / 6) a round and adds that up.
    assert TREE.running(37).std() < 3.0 * 37**0.5 / 2


REFUSED = (
    lambda: Tree(0, 3, 1.0, KEY),
    lambda: Tree(3, 0, 1.0, KEY),
    lambda: TREE.running(38),
    lambda: TREE.running(-1),
    lambda: TREE.step(0),
    lambda: TREE.step(38),
)


@pytest.mark.parametrize("ask", REFUSED)
def test_rounds_that_are_not_there_are_refused(ask: object) -> None:
    with pytest.raises(PlanError):
        ask()  # type: ignore[operator]


def matrices(rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """The tree as a factorisation: which rounds each node sums, and which nodes each running sum is made of."""
    nodes = sorted({node for after in range(1, rounds + 1) for node in nodes_of(after)})
    sums = np.array([[number in covered(*node) for number in range(1, rounds + 1)] for node in nodes], float)
    made = np.array([[node in set(nodes_of(after)) for node in nodes] for after in range(1, rounds + 1)], float)
    return sums, made


@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 8, 37])
def test_a_unit_reaches_no_farther_than_it_pays_for(rounds: int) -> None:
    """The matrix mechanism (Denisov et al. 2022): with B C the running sums, a unit in one round costs the largest column of C."""
    sums, made = matrices(rounds)
    np.testing.assert_array_equal(made @ sums, np.tril(np.ones((rounds, rounds))))
    reach = float(np.linalg.norm(sums, axis=0).max())
    assert reach <= rounds.bit_length() ** 0.5
    spend = Tree(rounds, 1, 2.0, KEY).spend(1.0)
    assert epsilon([spend], 1e-6) >= epsilon([Spend("gaussian", 2.0 / reach)], 1e-6) - 1e-9


def test_the_noise_of_running_sums_is_that_of_the_factorisation() -> None:
    rounds, draws = 11, 3000
    drawn = np.array([[Tree(rounds, 1, 1.0, at.to_bytes(32, "big")).running(after)[0] for after in range(1, rounds + 1)] for at in range(draws)])
    _, made = matrices(rounds)
    assert np.abs(np.cov(drawn.T) - made @ made.T).max() < 6 * 3.0 / draws**0.5


def test_a_unit_in_two_rounds_of_a_tree_would_pay_twice_and_more() -> None:
    """Why a node answers once in a tree: two rounds may lie under one node, and what they reach adds up there."""
    sums, _ = matrices(8)
    once = float(np.linalg.norm(sums, axis=0).max())
    twice = max(float(np.linalg.norm(sums[:, one] + sums[:, other])) for one in range(8) for other in range(one))
    assert twice > 2**0.5 * once
