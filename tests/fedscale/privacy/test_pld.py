"""Losses on a grid: what every such distribution must have, and sums of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedscale.privacy.pld import Loss, Pair, gaussian, laplace, together

PAIRS = {
    "gaussian": gaussian(1.0, 1.0, 1e-3),
    "rare": gaussian(0.8, 0.01, 1e-3),
    "often": gaussian(2.0, 0.9, 1e-3),
    "faint": gaussian(30.0, 0.001, 1e-4),
    "loud": gaussian(0.05, 0.2, 1e-2),
    "laplace": laplace(2.0, 1.0, 1e-3),
    "rare laplace": laplace(0.7, 0.1, 1e-3),
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())


def losses(loss: Loss) -> np.ndarray:
    return (loss.first + np.arange(len(loss.masses))) * loss.step


def mean_inverse(loss: Loss) -> float:
    """The mass under the second hypothesis: E[exp(-loss)]."""
    return float((loss.masses * np.exp(-losses(loss))).sum())


def delta(loss: Loss, epsilon: float) -> float:
    """The definition of delta, by direct summation."""
    gap = losses(loss) - epsilon
    return float((loss.masses * -np.expm1(-np.maximum(gap, 0))).sum() + loss.infinite)


@each_pair
def test_both_hypotheses_have_a_mass_of_one(pair: Pair) -> None:
    for loss in pair:
        assert loss.masses.min() >= 0
        assert loss.masses.sum() == pytest.approx(1.0, abs=1e-12)
        assert mean_inverse(loss) == pytest.approx(1.0, abs=1e-9)


@each_pair
def test_a_coarser_grid_keeps_both_masses_and_dominates(pair: Pair) -> None:
    for loss in pair:
        coarse = loss.coarser(16)
        assert coarse.step == pytest.approx(16 * loss.step)
        assert coarse.masses.sum() == pytest.approx(loss.masses.sum(), abs=1e-13)
        assert mean_inverse(coarse) == pytest.approx(mean_inverse(loss), abs=1e-9)
        for at in (0.0, 0.1, 1.0, 3.0):
            assert delta(coarse, at) >= delta(loss, at) - 1e-12


def test_the_same_grid_needs_no_work() -> None:
    loss = PAIRS["rare"][0]
    assert loss.coarser(1) is loss


@each_pair
def test_epsilon_is_where_the_definition_of_delta_says(pair: Pair) -> None:
    for loss in pair:
        for target in (1e-3, 1e-5, 1e-8):
            found = loss.epsilon(target)
            if found > 0:
                assert delta(loss, found) == pytest.approx(target, rel=1e-6)
            else:
                assert delta(loss, 0.0) <= target


def test_no_epsilon_is_enough_where_more_than_delta_is_unbounded() -> None:
    assert math.isinf(Loss(0.1, 0, np.array([0.9]), 0.1).epsilon(0.05))


def test_a_gaussian_has_the_loss_of_the_closed_form() -> None:
    going, coming = PAIRS["gaussian"]
    for loss in (going, coming):
        assert (losses(loss) * loss.masses).sum() == pytest.approx(0.5, abs=1e-6)
        # On points a step apart the variance is larger by up to a sixth of its square.
        assert (losses(loss) ** 2 * loss.masses).sum() - 0.25 == pytest.approx(1.0, abs=1e-5)


def test_a_unit_that_is_rarely_in_can_lose_much_by_going_and_little_by_coming() -> None:
    going, coming = PAIRS["rare"]
    assert losses(going)[-1] > 5
    assert losses(coming)[-1] == pytest.approx(-math.log1p(-0.01), abs=3e-3)


def test_laplace_has_its_atoms_and_nothing_beyond() -> None:
    going, _ = PAIRS["laplace"]
    assert losses(going)[-1] <= 0.5 + 2e-3
    top = going.masses[losses(going) >= 0.5 - 2e-3].sum()
    assert top == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "rare", "often"])
def test_sums_are_those_of_direct_convolution(name: str) -> None:
    for loss in PAIRS[name]:
        coarse = loss.coarser(100)
        direct = np.convolve(np.convolve(coarse.masses, coarse.masses), coarse.masses)
        sums = together([(coarse, 3)])
        whole = Loss(coarse.step, 3 * coarse.first, direct, 3 * coarse.infinite)
        for target in (1e-2, 1e-5, 1e-9):
            assert sums.epsilon(target) == pytest.approx(whole.epsilon(target), abs=1e-5)


def test_sums_of_different_parts_on_different_grids() -> None:
    one, other = gaussian(2.0, 1.0, 1e-3)[0], gaussian(2.0, 1.0, 4e-3)[0]
    both = together([(one, 1), (other, 1)])
    assert both.step == pytest.approx(4e-3)
    assert both.epsilon(1e-5) == pytest.approx(gaussian(math.sqrt(2), 1.0, 1e-4)[0].epsilon(1e-5), abs=1e-3)


def test_a_wide_sum_goes_to_a_coarser_grid() -> None:
    loss = gaussian(0.1, 0.2, 1e-3)[0]
    wide = together([(loss, 20_000)])
    assert wide.step > loss.step
    assert len(wide.masses) < 2 * 2**21
    assert math.isfinite(wide.epsilon(1e-5))


def test_moments_bound_those_of_the_masses_from_above() -> None:
    from fedscale.privacy.pld import ORDERS

    loss = PAIRS["rare"][0]
    for order, found in zip(ORDERS, loss.log_moments, strict=True):
        if abs(order) < 50:
            true = math.log((loss.masses * np.exp(order * losses(loss))).sum())
            assert true - 1e-9 <= found <= true + abs(order) * loss.step * 4 + 1e-9
