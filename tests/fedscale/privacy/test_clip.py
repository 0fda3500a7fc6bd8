"""Sensitivity is what was clipped, and the adaptive clip finds the quantile from anywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedscale.errors import PlanError, UpdateRejected
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.clip import BIT, AdaptiveClip, contribution, mean, norm_of, within
from fedscale.privacy.events import Spend
from fedscale.privacy.noise import gaussian
from fedscale.vector import Vector

changes = arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**60), 2.0**60, width=32))


@given(changes, st.floats(1e-3, 1e3), st.floats(1e-6, 1e9), st.floats(1e-3, 1e6))
def test_no_node_contributes_more_than_the_clip(change: np.ndarray, clip: float, weight: float, cap: float) -> None:
    added = contribution(change, clip, weight, cap)
    assert added.dtype == np.float32
    assert norm_of(added) <= clip * min(1.0, weight / cap) * (1 + 1e-6)
    assert norm_of(added) <= clip


@given(changes, st.floats(1e-3, 1e3))
def test_what_is_within_the_clip_stays_and_what_is_not_keeps_its_direction(change: np.ndarray, clip: float) -> None:
    added, norm = contribution(change, clip), norm_of(change)
    if norm <= clip * 0.999:
        assert np.array_equal(added, change)
    elif norm > clip:
        assert np.allclose(added * (norm / clip), change, rtol=1e-5, atol=norm * 1e-5)


@given(st.lists(changes, min_size=1, max_size=4), st.floats(1e-3, 1e3))
def test_factors_and_bits_of_many_norms_are_those_of_each_change(many: list[np.ndarray], clip: float) -> None:
    norms, moving = np.array([norm_of(change) for change in many]), AdaptiveClip(clip)
    for change, factor, bit in zip(many, within(norms, clip), moving.said(norms), strict=True):
        assert np.array_equal(contribution(change, clip), change * np.float32(factor))
        assert moving.coded(change)[-1] == np.float32(bit)


def test_who_is_at_the_clip_is_within_it() -> None:
    assert AdaptiveClip(2.0).said(np.array([1.0, 2.0, 2.0000001])).tolist() == [0.4, 0.4, -0.4]


def test_a_change_of_zeros_is_fine() -> None:
    assert not contribution(np.zeros(3, np.float32), 1.0).any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_passes_no_clip(value: float) -> None:
    with pytest.raises(UpdateRejected, match="not finite"):
        contribution(np.array([1.0, value], np.float32), 1.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_means_nothing_is_rejected(weight: float) -> None:
    with pytest.raises(UpdateRejected, match="weight"):
        contribution(np.ones(2, np.float32), 1.0, weight)


SIZES = (5000, 800, 700, 600, 500, 400, 300, 300, 200, 200)


def test_weighting_by_examples_under_fixed_noise_breaks_the_claim() -> None:
    """Ten hospitals of very different size: what a weighted mean really moves when the largest leaves, against what ten equal ones would."""
    clip, claimed = 1.0, 1.0
    equal = clip / len(SIZES)
    noise = claimed * equal
    # The plain weighted mean of clipped changes, with and without the largest hospital, all pulling in opposite directions.
    with_it = (SIZES[0] * clip - sum(SIZES[1:]) * clip) / sum(SIZES)
    without = -clip
    moved = abs(with_it - without)
    assert moved > 10 * equal
    real = epsilon([Spend("gaussian", noise / moved)], 1e-5)
    assert epsilon([Spend("gaussian", claimed)], 1e-5) == pytest.approx(4.377, abs=1e-3)
    assert real > 40


def test_capped_weights_over_a_fixed_number_keep_the_claim() -> None:
    clip, cap = 1.0, 500.0
    towards = np.array([1.0], np.float32)
    added = [contribution(towards if at == 0 else -towards, clip, size, cap) for at, size in enumerate(SIZES)]
    whole = mean(np.sum(added, axis=0, dtype=np.float32), len(SIZES))
    for gone in range(len(SIZES)):
        rest = mean(np.sum([one for at, one in enumerate(added) if at != gone], axis=0, dtype=np.float32), len(SIZES))
        assert abs(float(whole[0] - rest[0])) <= clip / len(SIZES) * (1 + 1e-6)


def test_a_mean_of_no_planned_nodes_is_refused() -> None:
    with pytest.raises(PlanError, match="at least one planned node"):
        mean(np.zeros(1, np.float32), 0)


def mean_of(clip: AdaptiveClip, norms: np.ndarray, noise_multiplier: float, key: bytes) -> Vector:
    """The noisy mean of nodes whose changes have these norms, all along the first coordinate, with its bit."""
    total = sum(clip.coded(np.array([norm, 0.0], np.float32)).astype(np.float64) for norm in norms)
    noise = gaussian(3, noise_multiplier * clip.clip * math.hypot(1, BIT), key)
    return ((total + noise) / len(norms)).astype(np.float32)


def path(clip: AdaptiveClip, norms: np.ndarray, rounds: int, noise_multiplier: float = 1.0) -> list[float]:
    """The clip over rounds in which nodes' norms are drawn anew."""
    seen, draw = [], np.random.default_rng(5)
    for at in range(rounds):
        clip = replace(clip, clip=clip.moved(mean_of(clip, draw.choice(norms, 60), noise_multiplier, at.to_bytes(32, "big"))))
        seen.append(clip.clip)
    return seen


@pytest.mark.parametrize("start", [0.01, 100.0])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_the_clip_reaches_the_quantile_from_afar(start: float, quantile: float) -> None:
    norms = np.random.default_rng(1).lognormal(0.0, 0.5, 10_000)
    wanted = float(np.quantile(norms, quantile))
    reached = path(AdaptiveClip(start * wanted, quantile), norms, 160)
    assert np.median(reached[-50:]) == pytest.approx(wanted, rel=0.15)
    assert max(reached[-50:]) < 2 * wanted
    assert min(reached[-50:]) > wanted / 2


def test_noise_beyond_all_nodes_moves_the_clip_no_farther_than_all_nodes_would() -> None:
    clip = AdaptiveClip(1.0, 0.5)
    for said, factor in ((1e6, math.exp(-0.1)), (-1e6, math.exp(0.1)), (0.0, 1.0)):
        assert clip.moved(np.array([0.0, said], np.float32)) == pytest.approx(factor)


@given(changes, st.floats(1e-3, 1e3))
def test_change_and_bit_together_are_what_the_noise_is_made_for(change: np.ndarray, clip: float) -> None:
    sent = AdaptiveClip(clip).coded(change)
    assert sent.dtype == np.float32
    assert norm_of(sent) <= clip * math.hypot(1, BIT) * (1 + 1e-6)
    assert (sent[-1] > 0) == (norm_of(change) <= clip)
    assert np.array_equal(sent[:-1], contribution(change, clip))


def test_the_bits_count_the_nodes_within() -> None:
    clip = AdaptiveClip(2.0, 0.75)
    rows = [clip.coded(np.array([norm, 0], np.float32)) for norm in (0.0, 1.0, 2.0, 2.001)]
    assert [row[-1] > 0 for row in rows] == [True, True, True, False]
    whole: Vector = np.stack(rows).mean(axis=0, dtype=np.float32)
    assert clip.moved(whole) == pytest.approx(2.0)  # three of four are within, as wanted
    np.testing.assert_allclose(whole[:-1], [5.0 / 4, 0.0], rtol=1e-5)


def test_a_moving_clip_lets_nothing_through_that_is_not_finite() -> None:
    with pytest.raises(UpdateRejected, match="not finite"):
        AdaptiveClip(1.0).coded(np.array([math.nan], np.float32))


@pytest.mark.parametrize("spoil", [{"clip": 0.0}, {"clip": math.inf}, {"quantile": 1.0}, {"quantile": 0.0}, {"rate": 0.0}, {"clip": math.nan}])
def test_a_malformed_clip_is_refused(spoil: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="adaptive clip"):
        AdaptiveClip(**({"clip": 1.0} | spoil))
