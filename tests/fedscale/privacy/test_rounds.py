from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedscale.errors import PlanError
from fedscale.learner import LocalOptimizer, Phase, Private, Training
from fedscale.privacy import rounds
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.dp import DP
from fedscale.privacy.lots import chosen, derived, secret
from fedscale.privacy.schedule import schedule

PROMISE = DP(epsilon=4, delta=1e-5)
TRAINING = Training(batch_size=16, optimizer=LocalOptimizer(lr=0.2))


def spent(dp: DP = PROMISE, units: int = 100, *, masked: bool = False, phase: Phase = Phase.TRAIN) -> Any:
    return rounds.spend_of(dp, TRAINING, 5, phase, units, masked=masked)


@pytest.mark.parametrize(
    ("unit", "mechanism", "masked", "way"),
    [
        ("record", "auto", False, "dpsgd"),
        ("patient", "auto", True, "union"),
        ("patient", "dpsgd", True, "dpsgd"),
        ("record", "union", True, "union"),
        ("node", "auto", True, "fedavg"),
        ("node", "fedavg", True, "fedavg"),
    ],
)
def test_how_privacy_is_made(unit: Any, mechanism: Any, masked: bool, way: str) -> None:
    assert rounds.way_of(DP(epsilon=1, delta=1e-5, unit=unit, mechanism=mechanism), masked=masked) == way


@pytest.mark.parametrize(
    ("unit", "mechanism", "masked", "message"),
    [
        ("node", "dpsgd", True, "does not hide a node"),
        ("node", "union", True, "does not hide a node"),
        ("record", "fedavg", True, "does not hide a record"),
        ("record", "union", False, "needs secure aggregation"),
        ("node", "auto", False, "needs secure aggregation"),
    ],
)
def test_what_cannot_be_made(unit: Any, mechanism: Any, masked: bool, message: str) -> None:
    with pytest.raises(PlanError, match=message) as raised:
        rounds.way_of(DP(epsilon=1, delta=1e-5, unit=unit, mechanism=mechanism), masked=masked)
    assert raised.value.where == "privacy.mechanism"
    assert raised.value.hint


def test_a_round_of_dpsgd_costs_what_the_schedule_says() -> None:
    assert spent() == schedule(PROMISE, TRAINING, 5, 100).spend
    assert spent(units=10).sampling_rate == 1.0
    assert spent(units=1000).sampling_rate == 0.016


@pytest.mark.parametrize(
    ("dp", "masked"),
    [(PROMISE, False), (PROMISE, True), (DP(epsilon=2, delta=1e-6, sampling_rate=0.3), True), (DP(epsilon=1, delta=1e-5, unit="node"), True)],
)
def test_all_rounds_together_keep_the_promise_and_waste_little(dp: DP, masked: bool) -> None:
    whole = epsilon([spent(dp, masked=masked)] * 5, dp.delta)
    assert 0.99 * dp.epsilon < whole <= dp.epsilon * (1 + 1e-6)


def test_only_training_spends() -> None:
    assert spent(phase=Phase.EVALUATE) is None
    assert spent(phase=Phase.INIT) is None


def test_nodes_are_never_amplified() -> None:
    dp = DP(epsilon=1, delta=1e-5, unit="node", sampling_rate=0.1)
    assert spent(dp, masked=True).sampling_rate == 1.0


@pytest.mark.parametrize("promised", [0.1, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("releases", [1, 20, 1000])
def test_no_calibrated_noise_passes_the_closed_form(promised: float, releases: int) -> None:
    dp = DP(epsilon=promised, delta=1e-6)
    each = rounds.spend_of(dp, TRAINING, releases, Phase.TRAIN, 1, masked=True)
    assert each is not None
    assert each.noise_multiplier <= rounds.most_noise(dp, releases) < 2.5 * each.noise_multiplier


def test_what_one_unit_reaches_and_who_makes_noise() -> None:
    assert rounds.reach(DP(epsilon=1, delta=1e-5, clip=3.0), TRAINING) == pytest.approx(3.0 * 0.2 / 16)
    assert rounds.reach(DP(epsilon=1, delta=1e-5, clip=3.0, unit="node"), TRAINING) == 3.0
    assert [rounds.makers(fewest, 0.1) for fewest in (1, 3, 10, 25)] == [1, 3, 9, 23]


def test_the_room_for_a_share_is_sixteen_deviations_of_the_most_noise() -> None:
    private = rounds.private_of(PROMISE, TRAINING, 5, 100, masked=True)
    share = rounds.in_shares(private, rounds.reach(PROMISE, TRAINING), 1000, 20, 4) / 2.0**20
    assert 12 * share < rounds.room(PROMISE, TRAINING, 5, 4)


def test_shares_add_up_to_the_noise_and_rounding_counts_as_reach() -> None:
    private = Private("node", "fedavg", 1.0, 2.0, 1.0, 1, 1.0)
    assert 2 * rounds.in_shares(private, 1.0, 100, 20, 4) == pytest.approx(2.0 * (2.0**20 + 10))
    assert math.sqrt(9) * rounds.in_shares(private, 1.0, 100, 20, 9) == pytest.approx(2.0 * (2.0**20 + 10))


@pytest.mark.parametrize(("size", "exponent"), [(100_000_000, 10), (1, 9)])
def test_a_grid_that_is_too_coarse_is_refused(size: int, exponent: int) -> None:
    with pytest.raises(PlanError, match="too coarse"):
        rounds.in_shares(Private("node", "fedavg", 1.0, 2.0, 1.0, 1, 1.0), 1.0, size, exponent, 4)


def test_what_a_site_tells_its_learner() -> None:
    private = rounds.private_of(PROMISE, TRAINING, 5, 100, masked=False, key=b"k")
    spend = spent()
    assert private == Private("record", "dpsgd", 1.0, spend.noise_multiplier, 0.16, spend.steps, 16.0, b"k")
    assert "key" not in repr(private), "a key is never printed"


@pytest.mark.parametrize(
    ("dp", "training", "settings", "where"),
    [
        (PROMISE, Training(amp=True), {}, "train.amp"),
        (PROMISE, TRAINING, {"holdout": 0.0}, "evaluate.holdout"),
        (PROMISE, TRAINING, {}, "privacy.metrics"),
        (DP(epsilon=1, delta=1e-5, unit="node"), TRAINING, {}, "privacy.mechanism"),
    ],
)
def test_plans_whose_privacy_cannot_be_kept(dp: DP, training: Training, settings: dict[str, Any], where: str) -> None:
    with pytest.raises(PlanError) as raised:
        rounds.require(dp, training, **{"masked": False, "evaluated": True, "holdout": 0.2} | settings)
    assert raised.value.where == where
    assert raised.value.hint


@pytest.mark.parametrize(
    ("training", "where"),
    [
        (Training(epochs=2), "train.epochs"),
        (Training(max_steps=3), "train.max_steps"),
        (Training(optimizer=LocalOptimizer(name="adam")), "train.optimizer.name"),
        (Training(optimizer=LocalOptimizer(momentum=0.9)), "train.optimizer.momentum"),
        (Training(optimizer=LocalOptimizer(weight_decay=0.1)), "train.optimizer.weight_decay"),
    ],
)
def test_local_training_that_one_common_step_cannot_be_is_not_dropped_in_silence(training: Training, where: str) -> None:
    with pytest.raises(PlanError, match="one step of all sites") as raised:
        rounds.require(PROMISE, training, masked=True, evaluated=False, holdout=0.0)
    assert raised.value.where == where
    dpsgd = DP(epsilon=1, delta=1e-5, mechanism="dpsgd")
    assert rounds.require(dpsgd, training, masked=True, evaluated=False, holdout=0.0) == "dpsgd"


@pytest.mark.parametrize("settings", [{"masked": True}, {"evaluated": False}, {"evaluated": False, "holdout": 0.0}])
def test_plans_whose_privacy_can_be_kept(settings: dict[str, Any]) -> None:
    assert rounds.require(PROMISE, TRAINING, **{"masked": False, "evaluated": True, "holdout": 0.2} | settings) in ("dpsgd", "union")


def test_exact_metrics_leave_a_site_only_where_the_plan_says_so() -> None:
    dp = DP(epsilon=1, delta=1e-5, metrics="exact")
    assert rounds.require(dp, TRAINING, masked=False, evaluated=True, holdout=0.2) == "dpsgd"


def test_everybody_is_drawn_with_the_same_chance_and_by_himself() -> None:
    drawn = np.zeros((2000, 50), bool)
    for step in range(2000):
        drawn[step, chosen(50, 0.3, derived(bytes(32), "sample", step))] = True
    deviation = math.sqrt(0.3 * 0.7 / 2000)
    assert np.abs(drawn.mean(0) - 0.3).max() < 5 * deviation
    sizes = drawn.sum(1)
    # Binomial, as of independent draws: nothing fixes the size of a sample.
    assert sizes.std() == pytest.approx(math.sqrt(50 * 0.3 * 0.7), rel=0.1)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(50)).max() < 6 / math.sqrt(2000)


def test_a_rate_of_one_takes_everybody_and_a_small_one_may_take_nobody() -> None:
    assert chosen(5, 1.0, bytes(32)).tolist() == [0, 1, 2, 3, 4]
    assert chosen(5, 1e-15, bytes(32)).tolist() == []
    assert chosen(0, 0.5, bytes(32)).tolist() == []


def test_secrets_are_fresh_unless_a_key_is_given() -> None:
    assert secret() != secret()
    assert secret(b"one") == secret(b"one") != secret(b"two")
    assert len({secret(b"one"), derived(b"one", "noise", 0), derived(b"one", "noise", 1), derived(b"one", "sample", 0)}) == 4
    assert all(len(key) == 32 for key in (secret(), secret(b"one"), derived(bytes(32), "noise", 3)))
