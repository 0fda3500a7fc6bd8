"""What the coordinator does in a private run: it moves the clip, adds a tree's noise, and lets nodes rest."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import PlanError
from fedscale.learner import Phase, Training
from fedscale.masked import Ground, terms_for
from fedscale.plan import Plan
from fedscale.privacy import rounds
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.clip import BIT, AdaptiveClip
from fedscale.privacy.coordinator import Kept, resting
from fedscale.privacy.dp import DP
from fedscale.privacy.events import Spend, repeated
from fedscale.run import Run
from fedscale.secagg.simulate import population
from fedscale.task import layout_for
from tests.fedscale.world import NODES, SCHEMA, plan_of

SECRET = bytes(range(32))
MOVING = DP(epsilon=8, delta=1e-5, unit="node", clip=2.0, clip_quantile=0.5)
TREES = DP(epsilon=8, delta=1e-5, unit="node", clip=2.0, mechanism="ftrl", tree_rounds=4)
PLAIN = DP(epsilon=8, delta=1e-5, unit="node")
TURNS: dict[str, Any] = {"select": 2, "min_per_round": 2}
SIZE = 40_000


def opened(kept: Kept, number: int, mean: np.ndarray | None = None, dp: DP = TREES, weight: float = 2.0) -> tuple[np.ndarray, Kept]:
    return kept.opened(dp, 10, number, np.zeros(SIZE, np.float32) if mean is None else mean, weight, 2.0**-20)


def test_a_fixed_clip_leaves_the_mean_as_it_is() -> None:
    mean = np.ones(3, np.float32)
    after, kept = opened(Kept(), 1, mean, PLAIN)
    assert after is mean
    assert kept == Kept()


def test_the_clip_goes_on_from_where_it_was_and_its_bit_comes_off() -> None:
    kept = Kept()
    for number, said in ((1, 1.0), (2, 1.0), (3, -1.0)):
        clip = kept.clip or MOVING.clip
        mean = np.array([7.0, 8.0, said * BIT * clip], np.float32)
        after, kept = opened(kept, number, mean, MOVING)
        assert after.tolist() == [7.0, 8.0]
        assert kept.clip == pytest.approx(clip * math.exp(-0.1 * said))


@given(st.floats(-1e9, 1e9, width=32), st.floats(2e-6, 2e6))
def test_no_noise_moves_the_clip_beyond_what_nodes_accept(said: float, clip: float) -> None:
    _, kept = opened(Kept(clip), 1, np.array([said], np.float32), MOVING)
    assert rounds.in_round(MOVING, kept.clip).clip == kept.clip


def test_the_noise_of_a_round_is_its_part_of_the_tree() -> None:
    total, claimed = np.zeros(SIZE), rounds.tree_noise(TREES, 10) * (2.0 + math.sqrt(SIZE) * 2.0**-20)
    for number in range(1, 5):
        total += 2.0 * opened(Kept(secret=SECRET), number)[0]
        assert total.std() == pytest.approx(claimed * math.sqrt(number.bit_count()), rel=0.02)
    # The fifth round begins another tree, whose noise has nothing to do with that of the first.
    fresh = 2.0 * opened(Kept(secret=SECRET), 5)[0]
    assert fresh.std() == pytest.approx(claimed, rel=0.02)
    assert abs(np.corrcoef(fresh, opened(Kept(secret=SECRET), 1)[0])[0, 1]) < 0.03


def test_the_same_secret_is_the_same_noise_and_another_is_another() -> None:
    noise = opened(Kept(secret=SECRET), 3)[0]
    np.testing.assert_array_equal(noise, opened(Kept(secret=SECRET), 3)[0])
    assert abs(np.corrcoef(noise, opened(Kept(secret=bytes(32)), 3)[0])[0, 1]) < 0.03
    assert "secret" not in repr(Kept(secret=SECRET))


def test_noise_without_a_secret_is_refused() -> None:
    with pytest.raises(PlanError, match="no secret"):
        opened(Kept(), 1)


def test_what_is_kept_is_in_every_checkpoint() -> None:
    plan = plan_of(privacy=TREES.model_dump(), clients=TURNS)
    run = Run(plan, plan.strategy.build(), kept=Kept(1.5, SECRET))
    facts, vectors = run.snapshot()
    again = Run.restore(plan, run.strategy, json.loads(json.dumps(facts)), vectors)
    assert again.kept == Kept(1.5, SECRET)


def test_who_has_answered_in_a_tree_rests_until_the_next() -> None:
    answered = [(1, ("ada",)), (2, ("ben", "cyd")), (5, ("dee",))]
    assert resting(TREES, 10, 4, answered) == {"ada", "ben", "cyd"}
    assert resting(TREES, 10, 5, answered) == frozenset()
    assert resting(TREES, 10, 6, answered) == {"dee"}
    whole = TREES.model_copy(update={"tree_rounds": 0})
    assert resting(whole, 10, 10, answered) == {"ada", "ben", "cyd", "dee"}
    assert resting(PLAIN, 10, 4, answered) == resting(None, 10, 4, answered) == frozenset()


@pytest.mark.parametrize(("length", "planned"), [(0, 1), (0, 16), (0, 37), (1, 9), (4, 10), (100, 10)])
def test_all_trees_together_keep_the_promise(length: int, planned: int) -> None:
    dp = TREES.model_copy(update={"tree_rounds": length})
    each = rounds.spend_of(dp, Training(), planned, Phase.TRAIN, 1, masked=False)
    assert each is not None
    assert each.steps == min(length or planned, planned)
    most = -(-planned // each.steps)
    assert epsilon(repeated(each, most), dp.delta) == pytest.approx(dp.epsilon, rel=1e-4)
    assert epsilon(repeated(each, most), dp.delta) <= dp.epsilon * (1 + 1e-9)


def test_a_release_that_is_repeated_costs_what_it_costs_one_by_one() -> None:
    for spend in (Spend("tree_aggregation", 3.0, 1.0, 7), Spend("gaussian", 3.0, 1.0, 7), Spend("poisson_subsampled_gaussian", 3.0, 0.1, 7)):
        assert epsilon(repeated(spend, 5), 1e-5) == epsilon([spend] * 5, 1e-5)


@pytest.mark.parametrize("clip", [1e-9, 1e9, -1.0, math.inf, math.nan])
def test_a_clip_that_the_plan_does_not_allow_is_refused(clip: float) -> None:
    with pytest.raises(PlanError, match="another clip") as raised:
        rounds.in_round(MOVING, clip)
    assert raised.value.where == "privacy.clip"


def test_a_clip_for_a_plan_whose_clip_does_not_move_is_refused() -> None:
    with pytest.raises(PlanError, match="another clip"):
        layout_for(plan_of(privacy=TREES.model_dump(), clients=TURNS), Phase.TRAIN, 10, 2, 1.0)


def test_the_grid_moves_with_the_clip() -> None:
    plan = plan_of(privacy=MOVING.model_dump(), secagg={"enabled": True}, clients={"min_per_round": 3})
    wide, narrow = layout_for(plan, Phase.TRAIN, 10, 4, 2.0), layout_for(plan, Phase.TRAIN, 10, 4, 2.0 / 1024)
    assert (wide.size, wide.clip, narrow.format.exponent - wide.format.exponent) == (11, 2.0, 10)
    assert layout_for(plan, Phase.TRAIN, 10, 4).clip == 2.0
    assert (layout_for(plan, Phase.EVALUATE, 10, 4).size, layout_for(plan, Phase.INIT, 10, 4).size) == (0, 10)


@pytest.mark.parametrize(
    ("privacy", "tables", "where"),
    [
        ({"clip_quantile": 0.5}, {"clients": TURNS}, "privacy.clip_quantile"),
        ({"mechanism": "ftrl", "unit": "node", "clip_quantile": 0.5}, {"clients": TURNS}, "privacy.clip_quantile"),
        ({"mechanism": "ftrl", "unit": "record"}, {"clients": TURNS}, "privacy.mechanism"),
        ({"mechanism": "ftrl", "unit": "node"}, {}, "clients.select"),
        ({"mechanism": "ftrl", "unit": "node"}, {"clients": {"select": 0.5}}, "clients.select"),
        ({"tree_rounds": 3}, {"clients": TURNS}, "privacy.tree_rounds"),
        ({"mechanism": "ftrl", "unit": "node"}, {"clients": TURNS, "strategy": {"name": "fedavg", "clip_norm": 1.0}}, "strategy"),
        ({"mechanism": "ftrl", "unit": "node"}, {"clients": TURNS, "strategy": {"name": "flower", "of": "FedMedian"}}, "strategy.name"),
    ],
)
def test_combinations_that_are_not_sound_are_refused_with_the_reason(privacy: dict[str, Any], tables: dict[str, Any], where: str) -> None:
    with pytest.raises(PlanError) as raised:
        plan_of(privacy={"epsilon": 1.0, "delta": 1e-5, **privacy}, evaluate={"every": 0}, **tables)
    assert raised.value.where == where
    assert raised.value.why or raised.value.hint


def test_the_settings_survive_toml() -> None:
    for dp, tables in ((MOVING, {"secagg": {"enabled": True}, "clients": {"min_per_round": 3}}), (TREES, {"clients": TURNS})):
        plan = plan_of(privacy=dp.model_dump(), **tables)
        assert Plan.from_toml(plan.to_toml()) == plan
        assert plan.privacy == dp


def test_a_moving_clip_costs_the_noise_of_its_bit_and_no_epsilon() -> None:
    fixed = MOVING.model_copy(update={"clip_quantile": None})
    spends = [rounds.spend_of(dp, Training(), 10, Phase.TRAIN, 1, masked=True) for dp in (MOVING, fixed)]
    assert spends[0] == spends[1]
    assert rounds.reach(MOVING, Training()) / rounds.reach(fixed, Training()) == pytest.approx(math.sqrt(1.04))
    assert rounds.adaptive(MOVING) == AdaptiveClip(2.0, 0.5)
    assert replace(AdaptiveClip(2.0, 0.5), clip=3.0) == rounds.adaptive(rounds.in_round(MOVING, 3.0))


def test_nodes_that_were_told_different_clips_do_not_agree_on_the_round() -> None:
    """A clip for one node alone would hide its change with the others' far smaller shares of noise: masks then do not cancel."""
    plan = plan_of(privacy=MOVING.model_dump(), secagg={"enabled": True}, clients={"min_per_round": 3})
    roster = population(NODES)["ada"].roster
    told = [
        terms_for(Ground(), plan, Phase.TRAIN, 1, layout_for(plan, Phase.TRAIN, SCHEMA.size, 4, clip), SCHEMA, "ab" * 32, roster).digest
        for clip in (2.0, 2.0 + 1e-9, 2e3, 0.0)
    ]
    assert len(set(told)) == 3
    assert told[0] == told[3], "no clip at all is the plan's own"
