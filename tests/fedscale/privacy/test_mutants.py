"""Mistakes that are easily made in privacy code, planted one at a time: each must show in a number that other tests rely on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fedscale.privacy import accountant, clip, noise, pld, tree
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Spend
from fedscale.vector import Vector

DELTA = 1e-5
SAMPLED = [Spend("poisson_subsampled_gaussian", 1.0, 0.05, 100)]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No number of a mutant outlives its test."""
    caches = (accountant._epsilon, accountant._composed, accountant._event)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def relative_change(plant: Callable[[], None], spends: list[Spend] = SAMPLED) -> float:
    """By how much a planted mistake changes an epsilon."""
    honest = epsilon(spends, DELTA)
    for cache in (accountant._epsilon, accountant._composed, accountant._event):
        cache.cache_clear()
    plant()
    return epsilon(spends, DELTA) / honest - 1


def test_forgetting_the_direction_in_which_a_unit_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = pld.gaussian

    def coming_only(noise_of: float, rate: float, step: float) -> pld.Pair:
        _, coming = sound(noise_of, rate, step)
        return coming, coming

    assert relative_change(lambda: monkeypatch.setattr(accountant, "gaussian", coming_only)) < -0.02


def test_rounding_losses_down(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = pld.gaussian

    def lower(noise_of: float, rate: float, step: float) -> pld.Pair:
        going, coming = (pld.Loss(loss.step, loss.first - 1, loss.masses, loss.infinite) for loss in sound(noise_of, rate, step))
        return going, coming

    assert relative_change(lambda: monkeypatch.setattr(accountant, "gaussian", lower)) < -1e-3


def test_losing_what_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def plant() -> None:
        monkeypatch.setattr(pld, "REACH", 4.0)

    # A Gaussian cut at four deviations has lost 3e-5 of its mass under each hypothesis: nothing stands for it any more.
    assert relative_change(plant, [Spend("poisson_subsampled_gaussian", 1.0, 0.5, 1), Spend("laplace", 1000.0)]) < -1e-3


def test_counting_a_tree_by_its_leaves_or_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = epsilon([Spend("tree_aggregation", 3.0, 1.0, 100)], DELTA)
    assert epsilon([Spend("gaussian", 3.0, 1.0, 100)], DELTA) > 2 * cost
    assert epsilon([Spend("gaussian", 3.0, 1.0, 1)], DELTA) < cost / 2


def test_a_clip_by_the_mean_square(monkeypatch: pytest.MonkeyPatch) -> None:
    change = np.full(100, 1.0, np.float32)
    assert clip.norm_of(clip.contribution(change, 2.0)) == pytest.approx(2.0, rel=1e-5)
    monkeypatch.setattr(clip, "norm_of", lambda values: float(np.sqrt(np.mean(values.astype(np.float64) ** 2))))
    assert math.sqrt(float(np.dot(change, change))) > 2.0
    assert np.linalg.norm(clip.contribution(change, 2.0)) > 2.0 * 1.1


def test_a_clip_that_adds_noise_for_the_next_one() -> None:
    """As where the clip moves before the noise is drawn: what is drawn is not for what was clipped."""
    now = clip.AdaptiveClip(1.0)
    after = now.moved(np.array([now.bit], np.float32))
    honest, wrong = epsilon([Spend("gaussian", 1.0)], DELTA), epsilon([Spend("gaussian", after / now.clip)], DELTA)
    assert wrong > honest * 1.1


def test_an_adaptive_clip_that_counts_the_clipped_runs_away() -> None:
    """The formula for nodes within the clip with the bit of those beyond it: the clip leaves its quantile for good."""
    norms = np.random.default_rng(0).lognormal(0.0, 0.3, 100)
    sound = wrong = clip.AdaptiveClip(0.1)
    for _ in range(60):
        sound, wrong = (
            clip.AdaptiveClip(now.moved(sign * np.mean([now.coded(np.array([norm], np.float32)) for norm in norms], axis=0)))
            for now, sign in ((sound, 1), (wrong, -1))
        )
    assert sound.clip == pytest.approx(float(np.median(norms)), rel=0.1)
    assert wrong.clip < 0.001


def test_noise_of_a_variance_where_a_deviation_is_meant() -> None:
    key = bytes(32)
    for draw in (noise.gaussian, noise.discrete_gaussian, noise.skellam):
        for sigma in (2.0, 900.0):
            measured = float(draw(100_000, sigma, key).std())
            assert measured == pytest.approx(sigma, rel=0.01)
            assert abs(measured / sigma**2 - 1) > 0.3


def test_one_node_s_noise_for_the_whole_tree() -> None:
    grown = tree.Tree(64, 5000, 1.0, bytes(32))
    assert grown.running(63).std() == pytest.approx(math.sqrt(6), rel=0.05)
    assert grown.running(64).std() == pytest.approx(1.0, rel=0.05)


def test_equal_keys_for_two_sites_cancel_nothing() -> None:
    """Two sites under one key have the same noise: their sum has twice the deviation, not the root of two, and a difference has none."""

    def site(key: bytes) -> Vector:
        return noise.gaussian(50_000, 1.0, key).astype(np.float32)

    same, different = site(bytes(32)) + site(bytes(32)), site(bytes(32)) + site(bytes([1] * 32))
    assert same.std() == pytest.approx(2.0, rel=0.02)
    assert different.std() == pytest.approx(math.sqrt(2), rel=0.02)
