"""Noise from a key: the distributions that are claimed, the same stream for the same key, and no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedscale.errors import ConfigError
from fedscale.privacy import noise
from fedscale.privacy.noise import BLOCK, discrete_gaussian, gaussian, laplace, skellam

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
Draw = Callable[..., Any]
SOURCES: list[tuple[Draw, float, float]] = [
    (gaussian, 1.0, 1.0),
    (gaussian, 1e-3, 1e-3),
    (laplace, 2.0, 2.0 * math.sqrt(2)),
    (discrete_gaussian, 1.5, 1.5),
    (discrete_gaussian, 100.0, 100.0),
    (discrete_gaussian, 3e4, 3e4),
    (discrete_gaussian, 2.0**40, 2.0**40),
    (skellam, 0.5, 0.5),
    (skellam, 30.0, 30.0),
    (skellam, 300.0, 300.0),
    (skellam, 2.0**30, 2.0**30),
]
names = [f"{draw.__name__}-{scale:g}" for draw, scale, _ in SOURCES]
each_source = pytest.mark.parametrize(("draw", "scale", "deviation"), SOURCES, ids=names)


@each_source
def test_the_standard_deviation_is_the_claimed_one(draw: Draw, scale: float, deviation: float) -> None:
    draws = draw(400_000, scale, KEY).astype(np.float64)
    assert draws[:100_000].std() == pytest.approx(deviation, rel=0.01)
    assert draws.std() == pytest.approx(deviation, rel=0.006)
    assert abs(draws.mean()) < 5 * deviation / math.sqrt(len(draws))


@each_source
def test_a_key_gives_the_same_draws_and_another_key_others(draw: Draw, scale: float, deviation: float) -> None:
    one, other = draw(20_000, scale, KEY), draw(20_000, scale, OTHER)
    np.testing.assert_array_equal(one, draw(20_000, scale, KEY))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(20_000)
    # Nor do draws at any small distance within a stream tell of each other, across the blocks too.
    for lag in (1, 2, BLOCK // 2, BLOCK):
        assert abs(np.corrcoef(one[lag:], one[:-lag])[0, 1]) < 5 / math.sqrt(len(one) - lag)


@each_source
def test_without_a_key_no_two_calls_are_alike(draw: Draw, scale: float, deviation: float) -> None:
    assert not np.array_equal(draw(100, scale), draw(100, scale))


@pytest.mark.parametrize("size", [0, 1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_any_number_of_draws(size: int) -> None:
    for draw, kind in ((gaussian, np.float64), (laplace, np.float64), (discrete_gaussian, np.int64), (skellam, np.int64)):
        draws = draw(size, 300.0, KEY)
        assert (draws.shape, draws.dtype) == ((size,), kind)


def greatest_gap(draws: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov's distance, times the root of the number of draws."""
    ordered = cdf(np.sort(draws))
    steps = np.arange(len(draws) + 1) / len(draws)
    return float(np.maximum(ordered - steps[:-1], steps[1:] - ordered).max() * math.sqrt(len(draws)))


def test_gaussian_draws_follow_the_normal_distribution() -> None:
    normal = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    assert greatest_gap(gaussian(200_000, 1.0, KEY), normal) < 1.95
    # Halves of one block come from sine and cosine of the same angles and must not betray it.
    draws = gaussian(BLOCK, 1.0, KEY)
    first, second = draws[: BLOCK // 2], draws[BLOCK // 2 :]
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / math.sqrt(BLOCK // 2)


def test_laplace_draws_follow_their_distribution() -> None:
    assert greatest_gap(laplace(200_000, 1.0, KEY), lambda x: np.where(x < 0, np.exp(x) / 2, 1 - np.exp(-x) / 2)) < 1.95


def test_gaussian_tails_are_there() -> None:
    draws = np.abs(gaussian(4_000_000, 1.0, KEY))
    for at in (3.0, 4.0, 4.5):
        expected = len(draws) * math.erfc(at / math.sqrt(2))
        assert abs((draws > at).sum() - expected) < 5 * math.sqrt(expected)


def exact(draw: Draw, sigma: float, points: np.ndarray) -> np.ndarray:
    """Probabilities by the definition: of the discrete Gaussian, or by the Bessel function."""
    if draw is discrete_gaussian:
        wide = np.arange(-int(12 * sigma) - 1, int(12 * sigma) + 2)
        return np.asarray(np.exp(-(points**2) / (2 * sigma**2)) / np.exp(-(wide**2) / (2 * sigma**2)).sum())
    from scipy.special import ive

    return np.asarray(ive(np.abs(points), sigma**2))


def misfit(draws: np.ndarray, draw: Draw, sigma: float) -> float:
    """Pearson's square on some sixty cells of about equal weight, less its mean, in its standard deviations; what lies far out is left away."""
    reach = int(6 * sigma) + 3
    observed = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    expected = exact(draw, sigma, np.arange(-reach, reach + 1)) * len(draws)
    cells = np.minimum((np.cumsum(expected) / len(draws) * 60).astype(int), 59)
    seen, due = np.bincount(cells, observed), np.bincount(cells, expected)
    kept = due > 20
    freedom = float(kept.sum() - 1)
    return float((((seen[kept] - due[kept]) ** 2 / due[kept]).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("draw", [discrete_gaussian, skellam])
@pytest.mark.parametrize("sigma", [0.4, 3.0, 255.0, 257.0, 900.0])
def test_integers_have_the_probabilities_of_the_definition(draw: Draw, sigma: float) -> None:
    draws = draw(400_000, sigma, KEY)
    assert misfit(draws, draw, sigma) < 5
    # Odd and even alike: rounding must not favour either.
    if sigma > 2:
        assert abs((draws & 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(len(draws))


def test_rounding_and_refusing_is_exact_also_where_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # So narrow that nine of ten draws are refused; what lies beyond four deviations is left away.
    monkeypatch.setattr(noise, "TABLE", 1.0)
    monkeypatch.setattr(noise, "REACH", 4.0)
    assert misfit(discrete_gaussian(1_200_000, 2.5, KEY), discrete_gaussian, 2.5) < 5
    # The cells see a mistake: plain rounded draws do not pass.
    assert misfit(np.rint(gaussian(1_200_000, 2.5, KEY)).astype(np.int64), discrete_gaussian, 2.5) > 5


def test_skellam_draws_from_rounding_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from_table = skellam(1000, 40.0, KEY)
    monkeypatch.setattr(noise, "TABLE", 1.0)
    draws = skellam(400_000, 40.0, KEY)
    assert misfit(draws, skellam, 40.0) < 5
    assert not np.array_equal(draws[:1000], from_table)


def test_skellam_shares_add_up_to_skellam() -> None:
    shares = sum(skellam(100_000, 40.0, bytes([site] * 32)) for site in range(9))
    assert np.std(shares) == pytest.approx(120.0, rel=0.01)
    fourth = np.mean((shares / 120.0) ** 4)
    assert fourth == pytest.approx(3 + 1 / 120.0**2, abs=0.1)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_means_nothing_is_refused(sigma: float) -> None:
    for draw in (gaussian, laplace, discrete_gaussian, skellam):
        with pytest.raises(ConfigError, match="scale of noise"):
            draw(10, sigma)


def test_integers_beyond_float64_are_refused() -> None:
    for draw in (discrete_gaussian, skellam):
        with pytest.raises(ConfigError, match="scale of noise"):
            draw(10, 2.0**41)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="key of 16 bytes"):
        gaussian(10, 1.0, bytes(16))
