"""Our epsilon against independent accountants, and what holds for every upper bound."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.errors import ConfigError
from fedscale.privacy import accountant
from fedscale.privacy.accountant import epsilon, epsilon_rdp, noise_multiplier
from fedscale.privacy.events import Mechanism, Spend
from tests.fedscale.privacy.known import RANGES

DELTA = 1e-5


def sampled(noise: float, rate: float, steps: int = 1) -> Spend:
    return Spend(RANGES, noise, rate, steps)


def by_dp_accounting(spends: list[Spend], delta: float) -> float:
    """The same composition by dp-accounting's own accountant with its own defaults."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    judge = PLDAccountant()
    for spend in spends:
        event: dp.DpEvent = dp.LaplaceDpEvent(spend.noise_multiplier) if spend.mechanism == "laplace" else dp.GaussianDpEvent(spend.noise_multiplier)
        if spend.sampling_rate < 1:
            event = dp.PoissonSampledDpEvent(spend.sampling_rate, event)
        judge.compose(event, spend.steps)
    return float(judge.get_epsilon(delta))


@pytest.mark.parametrize(
    "spends",
    [
        [sampled(1.1, 0.02, 300)],
        [sampled(0.8, 0.3, 4)],
        [sampled(3.0, 0.9, 20)],
        [sampled(1.0, 0.02, 50), sampled(1.4, 0.05, 30), sampled(1.0, 0.02, 25)],
        [sampled(1.0, 0.01, 100), Spend("gaussian", 4.0, 1.0, 3), sampled(2.0, 1.0, 2)],
        [Spend("laplace", 3.0, 1.0, 10)],
        [Spend("laplace", 1.5, 0.1, 40), sampled(1.2, 0.04, 60)],
    ],
)
def test_ledgers_cost_what_dp_accounting_says(spends: list[Spend]) -> None:
    assert epsilon(spends, DELTA) == pytest.approx(by_dp_accounting(spends, DELTA), abs=1e-6)


@settings(deadline=None)
@given(log_noise=st.floats(-6, 7), log_delta=st.floats(-60, -0.1))
def test_a_plain_gaussian_costs_what_dp_accounting_says(log_noise: float, log_delta: float) -> None:
    from dp_accounting import get_epsilon_gaussian

    with np.errstate(divide="ignore"):
        theirs = get_epsilon_gaussian(math.exp(log_noise), math.exp(log_delta))
    assert epsilon([Spend("gaussian", math.exp(log_noise))], math.exp(log_delta)) == pytest.approx(theirs, rel=1e-7, abs=1e-11)


@pytest.mark.parametrize(
    ("noise", "delta", "exact"),
    [(7.8e8, 8.3e-26, 1.028031341622743e-08), (3.3e6, 3.1e-25, 2.5778420181676836e-06), (5.5e4, 2.3e-25, 0.00016357275774855508)],
)
def test_rounding_never_makes_a_plain_gaussian_cheaper(noise: float, delta: float, exact: float) -> None:
    # Exact by 60 digits. Without a margin all of these were quoted too low.
    assert exact <= epsilon([Spend("gaussian", noise)], delta) <= exact * (1 + 1e-5)


def test_plain_gaussians_are_quoted_without_the_libraries_that_take_longest_to_load() -> None:
    code = "import sys; from fedscale.privacy.accountant import epsilon; from fedscale.privacy.events import Spend\n"
    code += "print(epsilon([Spend('gaussian', 2.0, 1.0, 3)], 1e-5) > 1, {'scipy', 'dp_accounting'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True set()\n"


@pytest.mark.requires("prv-accountant")
@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.0128, 790), (0.7, 0.05, 40)])
def test_an_unrelated_accountant_brackets_ours(noise: float, rate: float, steps: int) -> None:
    from prv_accountant import PRVAccountant
    from prv_accountant.privacy_random_variables import PoissonSubsampledGaussianMechanism

    judge = PRVAccountant(
        prvs=PoissonSubsampledGaussianMechanism(noise_multiplier=noise, sampling_probability=rate),
        max_self_compositions=steps,
        eps_error=0.01,
        delta_error=1e-10,
    )
    low, _, high = judge.compute_epsilon(delta=DELTA, num_self_compositions=steps)
    assert low <= epsilon([sampled(noise, rate, steps)], DELTA) <= high


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == epsilon_rdp([], DELTA) == 0.0


@settings(max_examples=15, deadline=None)
@given(st.permutations([sampled(1.0, 0.1, 3), sampled(2.0, 0.1, 5), Spend("gaussian", 3.0), Spend("laplace", 5.0), sampled(1.0, 0.1, 4)]))
def test_a_ledger_costs_the_same_in_any_order(spends: list[Spend]) -> None:
    grouped = [sampled(1.0, 0.1, 7), sampled(2.0, 0.1, 5), Spend("gaussian", 3.0), Spend("laplace", 5.0)]
    assert epsilon(spends, DELTA) == epsilon(grouped, DELTA)
    assert epsilon_rdp(spends, DELTA) == pytest.approx(epsilon_rdp(grouped, DELTA), rel=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.8, 4.0), st.floats(0.001, 0.4), st.integers(1, 60), st.floats(1e-9, 1e-3))
def test_an_upper_bound_is_monotone_and_below_renyi(noise: float, rate: float, steps: int, delta: float) -> None:
    cost = epsilon([sampled(noise, rate, steps)], delta)
    slack = 1e-6
    assert cost <= epsilon([sampled(noise, rate, steps + 1)], delta) + slack
    assert cost <= epsilon([sampled(noise * 0.9, rate, steps)], delta) + slack
    assert cost <= epsilon([sampled(noise, min(1.0, rate * 1.2), steps)], delta) + slack
    assert cost <= epsilon([sampled(noise, rate, steps)], delta / 2) + slack
    assert cost <= epsilon_rdp([sampled(noise, rate, steps)], delta) + 1e-3


def test_sampling_everybody_is_a_plain_gaussian() -> None:
    assert epsilon([sampled(2.0, 1.0, 5)], DELTA) == epsilon([Spend("gaussian", 2.0, 1.0, 5)], DELTA)
    assert epsilon([sampled(2.0, 1 - 1e-9, 5)], DELTA) == pytest.approx(epsilon([Spend("gaussian", 2.0, 1.0, 5)], DELTA), abs=1e-4)


def test_gaussians_add_up_by_their_precision() -> None:
    mixed = [Spend("gaussian", 2.0, 1.0, 4), Spend("gaussian", 5.0, 1.0, 25)]
    assert epsilon(mixed, DELTA) == pytest.approx(epsilon([Spend("gaussian", 1 / math.sqrt(2))], DELTA), abs=1e-12)


@pytest.mark.parametrize(("steps", "levels"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (1600, 11)])
def test_a_tree_costs_one_gaussian_a_level(steps: int, levels: int) -> None:
    assert epsilon([Spend("tree_aggregation", 2.0, 1.0, steps)], DELTA) == epsilon([Spend("gaussian", 2.0, 1.0, levels)], DELTA)


def test_two_trees_are_not_one_tree_of_both() -> None:
    tree = Spend("tree_aggregation", 2.0, 1.0, 8)
    assert epsilon([tree, tree], DELTA) == epsilon([Spend("gaussian", 2.0, 1.0, 8)], DELTA)


def test_many_different_mechanisms_lie_just_above_the_fine_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    spends = [sampled(draw.uniform(0.8, 2.0), draw.uniform(0.002, 0.03), draw.choice([1, 10])) for _ in range(40)]
    coarse = epsilon(spends, DELTA)
    monkeypatch.setattr(accountant, "LADDER", ((10_000, 1),))
    accountant._epsilon.cache_clear()
    fine = epsilon(spends, DELTA)
    accountant._epsilon.cache_clear()
    assert fine <= coarse <= fine + 1e-4


def test_a_thousand_rounds_of_equal_kinds_are_one_group() -> None:
    ledger = [sampled(1.0, 0.01, 20) for _ in range(500)] + [Spend("gaussian", 50.0) for _ in range(500)]
    assert len(accountant._grouped(ledger).groups) == 1
    assert epsilon(ledger, DELTA) == epsilon([sampled(1.0, 0.01, 10_000), Spend("gaussian", 50.0, 1.0, 500)], DELTA)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_discrete_noise_costs_no_less_than_its_exact_distribution(noise: float) -> None:
    # One coordinate on a grid 16 times coarser than the coarsest that is accounted.
    grid = 64
    sigma, points = noise * grid, np.arange(-12 * int(noise * grid + 1), 12 * int(noise * grid + 1) + 1)
    masses = np.exp(-(points**2) / (2 * sigma**2))
    masses /= masses.sum()
    quoted = epsilon([Spend("discrete_gaussian", noise)], DELTA)
    exact = hockey_stick(masses, grid, quoted)
    assert exact <= DELTA * 1.02
    assert exact >= DELTA * 0.9
    assert epsilon([Spend("skellam", noise)], DELTA) == quoted > epsilon([Spend("gaussian", noise)], DELTA)


def hockey_stick(masses: np.ndarray, shift: int, at: float) -> float:
    """How much of a distribution exceeds ``exp(at)`` times the same distribution moved by ``shift``."""
    return float(np.maximum(masses[shift:] - math.exp(at) * masses[:-shift], 0).sum())


def test_a_tiny_delta_falls_back_to_renyi() -> None:
    spend = sampled(1.0, 0.01, 100)
    assert epsilon([spend], 1e-14) == epsilon_rdp([spend], 1e-14) > epsilon([spend], 1e-10)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_a_delta_that_means_nothing_is_refused(delta: float) -> None:
    for quote in (epsilon, epsilon_rdp):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            quote([Spend("gaussian", 1.0)], delta)


@pytest.mark.parametrize(
    ("target", "rate", "steps", "mechanism"),
    [
        (1.0, 0.05, 100, RANGES),
        (8.0, 0.02, 500, RANGES),
        (0.3, 0.2, 10, "skellam"),
        (3.0, 1.0, 40, "gaussian"),
        (3.0, 1.0, 1000, "tree_aggregation"),
        (2.0, 0.5, 3, "laplace"),
        (50.0, 0.1, 2, RANGES),
    ],
)
def test_the_noise_for_a_promise_keeps_it_and_is_the_least(target: float, rate: float, steps: int, mechanism: str) -> None:
    noise = noise_multiplier(target, DELTA, sampling_rate=rate, steps=steps, mechanism=mechanism)
    assert epsilon([Spend(mechanism, noise, rate, steps)], DELTA) <= target
    assert epsilon([Spend(mechanism, noise * (1 - 1e-5), rate, steps)], DELTA) > target


def test_what_was_spent_before_asks_for_more_noise() -> None:
    spent = [sampled(1.2, 0.05, 60)]
    noise = noise_multiplier(3.0, DELTA, sampling_rate=0.05, steps=60, spent=spent)
    assert noise > noise_multiplier(3.0, DELTA, sampling_rate=0.05, steps=60)
    assert 2.999 < epsilon([*spent, sampled(noise, 0.05, 60)], DELTA) <= 3.0


def test_a_promise_that_is_broken_already_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise keeps this promise"):
        noise_multiplier(1.0, DELTA, spent=[Spend("gaussian", 1.0)])


def test_a_promise_that_needs_hardly_any_noise_gets_the_least() -> None:
    assert noise_multiplier(1e9, DELTA) == pytest.approx(0.001, rel=0.01)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_means_nothing_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="positive and finite"):
        noise_multiplier(target, DELTA)


def test_the_accountant_names_itself_and_its_oracle() -> None:
    assert all(part in accountant.accountant() for part in ("fedscale", "PLD", "dp-accounting 0."))


def test_quoting_needs_no_training_library(root: Path) -> None:
    import subprocess
    import sys

    code = "import sys, fedscale.privacy.accountant as a; print([m for m in ('torch', 'dp_accounting', 'scipy', 'opacus') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mechanisms_are_named_as_in_events() -> None:
    assert {str(each) for each in Mechanism} == {"gaussian", RANGES, "laplace", "tree_aggregation", "discrete_gaussian", "skellam"}
