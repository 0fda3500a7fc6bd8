"""What a plan would cost by each mechanism, worked out again from its parts."""

from __future__ import annotations

import json
import math

import pytest

from fedscale.errors import PlanError
from fedscale.learner import Training
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.dp import DP
from fedscale.privacy.events import from_json
from fedscale.privacy.outlook import FACTORS, Prospect, prospects, trades

PROMISE = DP(epsilon=3.0, delta=1e-5, clip=0.5, sampling_rate=0.5)
TRAINING = Training(epochs=1, batch_size=20)
SITES = [100, 100, 60]


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, int], Prospect]:
    return {(each.mechanism, each.units): each for each in prospects(PROMISE, TRAINING, 4, SITES, masked=False)}


def test_each_size_of_a_site_stands_once_and_each_shared_mechanism_once(found: dict[tuple[str, int], Prospect]) -> None:
    assert list(found) == [("dpsgd", 60), ("dpsgd", 100), ("union", 260), ("fedavg", 1)]


def test_the_plan_s_own_mechanism_is_marked() -> None:
    def chosen(dp: DP, *, masked: bool) -> set[str]:
        return {each.mechanism for each in prospects(dp, TRAINING, 1, [50], masked=masked) if each.chosen}

    assert chosen(PROMISE, masked=False) == {"dpsgd"}
    assert chosen(PROMISE, masked=True) == {"union"}
    assert chosen(PROMISE.model_copy(update={"unit": "node"}), masked=True) == {"fedavg"}


def test_a_plan_for_nodes_has_no_other_choice() -> None:
    (only,) = prospects(PROMISE.model_copy(update={"unit": "node"}), TRAINING, 2, [1, 1, 1], masked=True)
    assert (only.mechanism, only.statement.unit, only.spend.sampling_rate) == ("fedavg", "node", 1.0)
    assert only.noise == pytest.approx(only.spend.noise_multiplier / 3)


def test_every_mechanism_keeps_the_promise_and_no_more(found: dict[tuple[str, int], Prospect]) -> None:
    for each in found.values():
        assert 2.9999 < each.statement.epsilon <= 3.0
        assert epsilon(each.statement.spends, 1e-5) == pytest.approx(each.statement.epsilon, abs=1e-9)
        assert epsilon([each.spend], 1e-5) == each.per_round
        assert each.rounds == 4
        assert sum(spend.steps for spend in each.statement.spends) == 4 * each.spend.steps


def test_sampling_is_what_the_plan_says(found: dict[tuple[str, int], Prospect]) -> None:
    assert (found["dpsgd", 100].spend.sampling_rate, found["dpsgd", 100].spend.steps) == (0.2, 5)
    assert (found["dpsgd", 60].spend.sampling_rate, found["dpsgd", 60].spend.steps) == (pytest.approx(1 / 3), 3)
    assert (found["union", 260].spend.sampling_rate, found["union", 260].spend.steps) == (0.5, 1)
    assert found["fedavg", 1].spend.sampling_rate == 1.0


def test_noise_is_that_of_one_step_s_mean_over_all_sites(found: dict[tuple[str, int], Prospect]) -> None:
    alone, union, nodes = found["dpsgd", 100], found["union", 260], found["fedavg", 1]
    # A batch of 20 at each of three sites; half of 260 records in one sum; three nodes in one sum.
    assert alone.noise == pytest.approx(alone.spend.noise_multiplier / 20 / math.sqrt(3))
    assert union.noise == pytest.approx(union.spend.noise_multiplier / 130)
    assert nodes.noise == pytest.approx(nodes.spend.noise_multiplier / 3)


def test_what_shows_without_amplification_is_never_less(found: dict[tuple[str, int], Prospect]) -> None:
    for each in found.values():
        sampled = each.spend.sampling_rate < 1
        assert (each.statement.without_amplification > each.statement.epsilon) is sampled
        assert (each.statement.sampling == "none") is not sampled


def test_as_json(found: dict[tuple[str, int], Prospect]) -> None:
    tree = json.loads(json.dumps([each.to_json() for each in found.values()]))
    assert [each["mechanism"] for each in tree] == ["dpsgd", "dpsgd", "union", "fedavg"]
    for each, prospect in zip(tree, found.values(), strict=True):
        assert each["spend"]["noise_multiplier"] == prospect.spend.noise_multiplier
        assert from_json(each["statement"]["spends"]) == prospect.statement.spends


@pytest.mark.parametrize("key", [("dpsgd", 60), ("union", 260), ("fedavg", 1)])
def test_trades_are_epsilons_of_other_noise(found: dict[tuple[str, int], Prospect], key: tuple[str, int]) -> None:
    traded = trades(found[key], 1e-5)
    assert [trade.noise_multiplier / found[key].spend.noise_multiplier for trade in traded] == pytest.approx(list(FACTORS))
    for trade in traded:
        assert (trade.mechanism, trade.units) == key
        assert trade.noise / trade.noise_multiplier == pytest.approx(found[key].noise / found[key].spend.noise_multiplier)
    costs = [trade.epsilon for trade in traded]
    assert costs == sorted(costs, reverse=True)
    assert costs[FACTORS.index(1.0)] == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("units", [[], [0], [10, -1]])
def test_sites_without_units_are_refused(units: list[int]) -> None:
    with pytest.raises(PlanError, match="at least one unit"):
        prospects(PROMISE, TRAINING, 1, units, masked=False)


TREES = DP(epsilon=4, delta=1e-5, unit="node", mechanism="ftrl", tree_rounds=8)


def test_trees_are_weighed_against_fresh_noise_where_the_plan_asks_for_them() -> None:
    found = {each.mechanism: each for each in prospects(TREES, Training(), 32, [1] * 10, masked=False)}
    assert list(found) == ["fedavg", "ftrl"]
    assert found["ftrl"].chosen
    trees = found["ftrl"].statement
    assert [spend.mechanism for spend in trees.spends] == ["tree_aggregation"] * 4
    assert (trees.epsilon, trees.without_amplification) == (pytest.approx(4, rel=1e-4), pytest.approx(4, rel=1e-4))
    assert trees.relation == "zero out the contribution of one unit"
    assert found["ftrl"].noise < found["fedavg"].noise / 2


def test_trades_of_a_tree_count_every_tree() -> None:
    (chosen,) = [each for each in prospects(TREES, Training(), 32, [1] * 10, masked=False) if each.chosen]
    found = trades(chosen, 1e-5)
    costs = [each.epsilon for each in found]
    assert costs == sorted(costs, reverse=True)
    same = min(found, key=lambda each: abs(each.noise_multiplier - chosen.spend.noise_multiplier))
    assert same.epsilon == pytest.approx(4, rel=1e-4)


def test_a_moving_clip_is_shown_with_the_noise_of_its_bit() -> None:
    fixed = DP(epsilon=4, delta=1e-5, unit="node")
    moving = fixed.model_copy(update={"clip_quantile": 0.5})
    noises = [prospects(dp, Training(), 10, [1] * 5, masked=True)[0].noise for dp in (moving, fixed)]
    assert noises[0] / noises[1] == pytest.approx(1.04**0.5)
