"""The same numbers by other means: integrals, enumeration and formulas written down again, none of which shares code with ours."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from fedscale.privacy.accountant import epsilon, epsilon_rdp, rdp_curve
from fedscale.privacy.audit.canaries import lower_bound
from fedscale.privacy.events import Spend
from fedscale.privacy.pld import Loss, gaussian, laplace

Density = Callable[[np.ndarray], np.ndarray]
LINE = np.linspace(-45, 45, 450_001)


def normal(mean: float, deviation: float) -> Density:
    return lambda x: np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))


def double_exponential(mean: float, scale: float) -> Density:
    return lambda x: np.exp(-np.abs(x - mean) / scale) / (2 * scale)


def delta_by_integration(first: Density, second: Density, at: float) -> float:
    """The integral of what the first density has beyond ``exp(at)`` times the second."""
    return float(np.trapezoid(np.maximum(first(LINE) - math.exp(at) * second(LINE), 0), LINE))


def mixed(one: Density, other: Density, rate: float) -> Density:
    return lambda x: (1 - rate) * one(x) + rate * other(x)


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 1.0), (0.8, 0.1), (2.0, 0.5), (1.5, 0.01), (4.0, 0.9)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_one_sampled_gaussian_by_integration(noise: float, rate: float, delta: float) -> None:
    without, with_it = normal(0, noise), mixed(normal(0, noise), normal(1, noise), rate)
    going, coming = gaussian(noise, rate, 1e-4)
    for loss, first, second in ((going, with_it, without), (coming, without, with_it)):
        assert agrees(loss, first, second, delta)


@pytest.mark.parametrize(("scale", "rate"), [(1.0, 1.0), (0.5, 0.2), (3.0, 0.05)])
@pytest.mark.parametrize("delta", [1e-2, 1e-4])
def test_one_sampled_laplace_by_integration(scale: float, rate: float, delta: float) -> None:
    without, with_it = double_exponential(0, scale), mixed(double_exponential(0, scale), double_exponential(1, scale), rate)
    going, coming = laplace(scale, rate, 1e-4)
    for loss, first, second in ((going, with_it, without), (coming, without, with_it)):
        assert agrees(loss, first, second, delta)


def agrees(loss: Loss, first: Density, second: Density, delta: float) -> bool:
    """Whether the integral says the same, and that ours is from above but for the integral's own error."""
    found = loss.epsilon(delta)
    integral = delta_by_integration(first, second, found)
    return integral <= delta * (1 + 1e-3) and (found == 0.0 or integral >= delta * 0.98)


def balle_wang(noise: float, at: float) -> float:
    """Delta of one Gaussian release in closed form."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return below(0.5 / noise - at * noise) - math.exp(at) * below(-0.5 / noise - at * noise)


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_gaussians_by_the_closed_form(noise: float, steps: int) -> None:
    for delta in (1e-2, 1e-5, 1e-8):
        found = epsilon([Spend("gaussian", noise, 1.0, steps)], delta)
        assert balle_wang(noise / math.sqrt(steps), found) == pytest.approx(delta, rel=1e-6)


def test_laplace_releases_never_cost_more_than_their_pure_sum() -> None:
    for scale, steps in ((2.0, 1), (2.0, 5), (10.0, 50)):
        pure = steps / scale
        assert epsilon([Spend("laplace", scale, 1.0, steps)], 1e-9) <= pure * (1 + 1e-9) + 1e-6
    # Below the least delta of the grid it is the Renyi bound, a little higher.
    assert 0.5 < epsilon([Spend("laplace", 2.0)], 1e-12) < 0.52


def test_two_noisy_coins_by_enumeration() -> None:
    """Randomised response told by Laplace: a composition of two, integrated over the plane."""
    scale, delta = 1.0, 1e-2
    axis = np.linspace(-14, 15, 2901)
    first, second = double_exponential(1, scale)(axis), double_exponential(0, scale)(axis)
    both = np.outer(first, first), np.outer(second, second)
    found = epsilon([Spend("laplace", scale, 1.0, 2)], delta)
    excess = np.maximum(both[0] - math.exp(found) * both[1], 0).sum() * (axis[1] - axis[0]) ** 2
    assert excess == pytest.approx(delta, rel=2e-2)


def dp_accounting_pld(spends: list[Spend], delta: float) -> float:
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    judge = PLDAccountant()
    for spend in spends:
        judge.compose(dp.PoissonSampledDpEvent(spend.sampling_rate, dp.GaussianDpEvent(spend.noise_multiplier)), spend.steps)
    return float(judge.get_epsilon(delta))


@pytest.mark.parametrize("seed", range(2))
def test_ledgers_drawn_at_random_cost_what_dp_accounting_says(seed: int) -> None:
    draw = random.Random(seed)
    spends = [
        Spend("poisson_subsampled_gaussian", draw.uniform(0.9, 3.0), draw.uniform(0.005, 0.2), draw.randint(1, 40)) for _ in range(draw.randint(1, 5))
    ]
    delta = 10 ** draw.uniform(-7, -3)
    assert epsilon(spends, delta) == pytest.approx(dp_accounting_pld(spends, delta), abs=1e-6)


def test_renyi_divergence_of_a_sampled_gaussian_by_integration() -> None:
    noise, rate = 1.3, 0.2
    without, with_it = normal(0, noise)(LINE), mixed(normal(0, noise), normal(1, noise), rate)(LINE)
    for order in (2.0, 5.0, 16.0):
        kept = without > 0
        moment = float(np.trapezoid(np.where(kept, without * (with_it / np.where(kept, without, 1)) ** order, 0), LINE))
        expected = math.log(moment) / (order - 1)
        assert rdp_curve([Spend("poisson_subsampled_gaussian", noise, rate)], [order])[0] == pytest.approx(expected, rel=1e-6)


def test_renyi_divergence_of_laplace_by_its_formula() -> None:
    scale, order = 2.0, 3.0
    grown = order / (2 * order - 1) * math.exp((order - 1) / scale) + (order - 1) / (2 * order - 1) * math.exp(-order / scale)
    expected = math.log(grown) / (order - 1)
    assert rdp_curve([Spend("laplace", scale)], [order])[0] == pytest.approx(expected, rel=1e-9)
    # A sample of it is bounded by the whole.
    assert rdp_curve([Spend("laplace", scale, 0.1)], [order])[0] == pytest.approx(expected, rel=1e-9)


def test_renyi_divergences_add_up() -> None:
    one, other = Spend("gaussian", 2.0), Spend("poisson_subsampled_gaussian", 1.0, 0.1, 3)
    orders = [2.0, 8.0, 32.0]
    assert np.allclose(rdp_curve([one, other, one], orders), 2 * rdp_curve([one], orders) + rdp_curve([other], orders))
    assert np.allclose(rdp_curve([one], orders), np.array(orders) / 8)


def test_the_renyi_bound_is_never_below_the_reported_one() -> None:
    draw = random.Random(11)
    for _ in range(3):
        spends = [Spend("poisson_subsampled_gaussian", draw.uniform(0.8, 3), draw.uniform(0.01, 0.3), draw.randint(1, 50)), Spend("laplace", 20.0)]
        delta = 10 ** draw.uniform(-8, -4)
        assert epsilon(spends, delta) <= epsilon_rdp(spends, delta) + 1e-6


def certificate_by_enumeration(right: int, made: int, at: float) -> float:
    """How likely at least so many guesses are right if each is by itself with chance e^at / (1 + e^at)."""
    lucky = math.exp(at) / (1 + math.exp(at))
    total = 0.0
    for tosses in itertools.product((False, True), repeat=made):
        if sum(tosses) >= right:
            total += math.prod(lucky if toss else 1 - lucky for toss in tosses)
    return total


@pytest.mark.parametrize(("right", "made"), [(10, 10), (9, 10), (8, 10), (12, 12), (6, 6)])
def test_the_certificate_by_enumerating_all_guesses(right: int, made: int) -> None:
    bound = lower_bound(right, made, made, 0.0)
    if bound > 0:
        assert certificate_by_enumeration(right, made, bound) == pytest.approx(0.05, rel=1e-3)
    else:
        assert certificate_by_enumeration(right, made, 0.0) >= 0.05
