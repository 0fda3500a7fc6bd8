"""Privacy loss distributions on a grid: what a sampled mechanism loses, and what any number of them lose together.

The privacy loss of an outcome is the logarithm of how much likelier it is under one hypothesis than under the other. Here its distribution
lies on the multiples of a step. Whatever falls between two points is split among them so that its mass under both hypotheses is kept
("connect the dots"); the result dominates the truth, so every epsilon read from it is an upper bound, looser as the grid gets coarser.
Sums of losses are products of Fourier transforms. What a window may wrap around is bounded by Chernoff and charged to delta.

Sources: Doroshenko et al. 2022 (connect the dots), Koskela et al. 2020 (Fourier accountant), Gopi et al. 2021 (windows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

# A Gaussian beyond this many standard deviations has a mass below 1e-22.
REACH = 9.8
TAIL = 1e-15
MOST_POINTS = 1 << 21
BLOCKS = 4096
STRETCH = 32.0
ORDERS = np.concatenate([-np.geomspace(4096.0, 0.01, 48), np.geomspace(0.01, 4096.0, 48)])


@dataclass(frozen=True)
class Loss:
    """A distribution of privacy loss under the first hypothesis.

    Args:
        step: distance of the grid's points.
        first: ``masses[i]`` lies at the loss ``(first + i) * step``.
        masses: shape ``(n,)``, none negative.
        infinite: mass whose loss is unbounded or was cut off.
    """

    step: float
    first: int
    masses: Floats
    infinite: float

    @cached_property
    def log_moments(self) -> Floats:
        """``log E[exp(order * loss)]`` for each of ``ORDERS``, bounded from above in blocks of points."""
        width = -(-len(self.masses) // BLOCKS)
        starts = np.arange(0, len(self.masses), width)
        weights = np.add.reduceat(self.masses, starts)
        starts, weights = starts[weights > 0], weights[weights > 0]
        ends = np.where(ORDERS[:, None] > 0, starts + width - 1, starts) + self.first
        exponents = ORDERS[:, None] * self.step * ends + np.log(weights)
        tops = exponents.max(axis=1)
        moments: Floats = tops + np.log(np.exp(exponents - tops[:, None]).sum(axis=1))
        return moments

    def coarser(self, factor: int) -> Loss:
        """The same on a grid whose step is ``factor`` times as long."""
        if factor == 1:
            return self
        points = np.arange(self.first, self.first + len(self.masses))
        below = points // factor
        # Of a mass a, the share v at the upper point keeps a and a * exp(-loss).
        shares = np.expm1((below * factor - points) * self.step) / math.expm1(-factor * self.step)
        base, upper = int(below[0]), self.masses * shares
        masses: Floats = np.bincount(below - base, self.masses - upper, int(below[-1]) - base + 2).astype(np.float64)
        masses[1:] += np.bincount(below - base, upper, len(masses) - 1)
        return Loss(self.step * factor, base, masses, self.infinite)

    def epsilon(self, delta: float) -> float:
        """The least epsilon, from 0 up, at which no event tells the hypotheses apart by more than ``delta``; infinite where there is none."""
        if delta <= self.infinite:
            return math.inf
        falling = self.masses[::-1]
        above = np.cumsum(falling)
        discounted = _discounted(falling, self.step)
        deltas = self.infinite + above - discounted
        at = int(np.argmax(deltas > delta))
        if deltas[at] <= delta:
            return 0.0
        loss = (self.first + len(falling) - 2 - at) * self.step
        return float(max(0.0, loss + math.log((self.infinite + above[at] - delta) / discounted[at])))


def _discounted(falling: Floats, step: float) -> Floats:
    """The masses above a point, from the greatest loss down, each times exp(point - loss): in stretches over which nothing over- or underflows."""
    decay, discounted, before = math.exp(-step), np.empty_like(falling), 0.0
    growth = np.exp(step * np.arange(min(len(falling), math.ceil(STRETCH / step))))
    for start in range(0, len(falling), len(growth)):
        part = falling[start : start + len(growth)]
        discounted[start : start + len(part)] = (before + np.cumsum(part * growth[: len(part)])) / growth[: len(part)]
        before = decay * float(discounted[start + len(part) - 1])
    return discounted * decay


Pair: TypeAlias = tuple[Loss, Loss]
Between: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]


def gaussian(noise: float, rate: float, step: float) -> Pair:
    """Losses of one Gaussian release of a sum of contributions within 1, when a unit goes and when one comes.

    Args:
        noise: standard deviation.
        rate: chance of the unit to be in the release.
        step: distance of the grid's points, at least; doubled until there are at most ``MOST_POINTS``.
    """
    from scipy.special import ndtr

    def between(edges: Floats) -> tuple[Floats, Floats]:
        return _between(ndtr, edges * noise + 0.5 / noise), _between(ndtr, edges * noise - 0.5 / noise)

    most = (REACH + 0.5 / noise) / noise
    return _sampled(between, most, rate, step)


def laplace(scale: float, rate: float, step: float) -> Pair:
    """The same for Laplace noise of that scale on a number that one unit moves by 1."""

    def below(at: Floats) -> Floats:
        return np.where(at < 0, 0.5 * np.exp(np.minimum(at, 0) / scale), 1 - 0.5 * np.exp(-np.maximum(at, 0) / scale))

    def between(edges: Floats) -> tuple[Floats, Floats]:
        # The loss is the number itself, stretched, and all outcomes beyond 0 and 1 have the loss of those.
        places = np.where(edges * scale >= 1, np.inf, np.where(edges * scale < -1, -np.inf, (edges * scale + 1) / 2))
        return np.diff(below(places)), np.diff(below(places - 1))

    return _sampled(between, 1 / scale, rate, step)


def _between(cdf: Callable[[Floats], Floats], edges: Floats) -> Floats:
    """Mass between neighbouring edges of a symmetric distribution, exact in both tails."""
    tails = cdf(-np.abs(edges))
    same_side = np.where(edges[1:] <= 0, tails[1:] - tails[:-1], tails[:-1] - tails[1:])
    masses: Floats = np.where((edges[:-1] < 0) & (edges[1:] > 0), 1 - tails[:-1] - tails[1:], same_side)
    return masses


def _sampled(between: Between, most: float, rate: float, step: float) -> Pair:
    """Both directions for a mechanism whose own losses lie within ``most``, when a unit is in with chance ``rate``.

    ``between`` gives the mass of the mechanism's own loss between edges, without and with the unit.
    """
    low, high = _mixed(-most, rate), _mixed(most, rate)
    while (high - low) / step > MOST_POINTS:
        step *= 2
    remove = np.arange(math.floor(low / step) - 1, math.ceil(high / step) + 1)
    without, with_it = between(_unmixed(np.asarray(remove * step, np.float64), rate))
    mixture = (1 - rate) * without + rate * with_it
    going = _dots(step, remove, mixture, without)
    coming = _dots(step, -remove[::-1], without[::-1], mixture[::-1])
    return going, coming


def _mixed(loss: float, rate: float) -> float:
    """The loss of the sampled mechanism where the mechanism's own is ``loss``: log(1 - rate + rate * exp(loss))."""
    if rate == 1:
        return loss
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + loss))


def _unmixed(losses: Floats, rate: float) -> Floats:
    """The inverse of ``_mixed``, -inf below its range."""
    if rate == 1:
        return losses
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        small = np.log1p(np.maximum(np.expm1(np.minimum(losses, 1.0)) / rate, -1.0))
        large = losses - math.log(rate) + np.log1p(-(1 - rate) * np.exp(-np.maximum(losses, 1.0)))
    return np.where(losses > 1, large, small)


def _dots(step: float, points: npt.NDArray[np.int64], first: Floats, second: Floats) -> Loss:
    """Split the mass between neighbouring points, under both hypotheses, among them; what lies outside is unbounded or rounded up."""
    lower = points[:-1] * step
    upper_share = np.clip((first - second * np.exp(np.minimum(lower, 700.0))) / -math.expm1(-step), 0.0, first)
    masses = np.zeros(len(points))
    masses[:-1] += first - upper_share
    masses[1:] += upper_share
    # A Gaussian's own tails beyond REACH, below 1e-22 each, are unbounded here; the numbers of float64 do not add up to 1 any better.
    return Loss(step, int(points[0]), masses, 1e-22)


def together(parts: Sequence[tuple[Loss, int]], tail: float = TAIL) -> Loss:
    """The distribution of the sum of independent losses, each so many times; all on one grid, which is made coarser where the sum is wide.

    Args:
        parts: losses and how often.
        tail: mass that may be cut off, charged to the infinite one.
    """
    step = max(loss.step for loss, _ in parts)
    parts = [(loss.coarser(round(step / loss.step)), times) for loss, times in parts]
    low, high = _window(parts, tail)
    while (high - low) / step > MOST_POINTS:
        step *= 2
        parts = [(loss.coarser(2), times) for loss, times in parts]
        low, high = _window(parts, tail)
    return _convolved(parts, math.floor(low / step), math.ceil(high / step), tail)


def _window(parts: Sequence[tuple[Loss, int]], tail: float) -> tuple[float, float]:
    """Where all of the sum lies but ``tail`` below and ``tail`` above, by Chernoff over ``ORDERS`` and by the ends of the parts."""
    moments = sum((times * loss.log_moments for loss, times in parts), np.zeros(len(ORDERS)))
    bounds = (moments - math.log(tail)) / ORDERS
    least = sum(times * loss.first * loss.step for loss, times in parts)
    most = sum(times * (loss.first + len(loss.masses) - 1) * loss.step for loss, times in parts)
    return max(least, float(bounds[ORDERS < 0].max())), min(most, float(bounds[ORDERS > 0].min()))


def _convolved(parts: Sequence[tuple[Loss, int]], low: int, high: int, tail: float) -> Loss:
    """The sum on the points from ``low`` to ``high``: transforms multiplied, and whatever lies outside folded into the window."""
    size = _quick_size(max(high - low + 1, 2))
    spectra: dict[int, npt.NDArray[np.complex128]] = {}
    first, log_finite = 0, 0.0
    for loss, times in parts:
        folded = np.zeros(-(-len(loss.masses) // size) * size)
        folded[: len(loss.masses)] = loss.masses
        spectrum = np.fft.rfft(folded.reshape(-1, size).sum(axis=0))
        spectra[times] = spectra[times] * spectrum if times in spectra else spectrum
        first += times * loss.first
        log_finite += times * math.log1p(-loss.infinite)
    product = np.ones(size // 2 + 1, np.complex128)
    for times, spectrum in spectra.items():
        product *= _power(spectrum, times)
    masses = np.roll(np.fft.irfft(product, size), (first - low) % size)
    return Loss(parts[0][0].step, low, np.maximum(masses, 0.0), -math.expm1(log_finite) + tail)


def _quick_size(least: int) -> int:
    """The least number from ``least`` up without a prime factor above 5, of which transforms are quick."""
    odd: list[int] = [3**i * 5**j for i in range(14) for j in range(10) if 3**i * 5**j < 2 * least]
    return min(each << max(0, math.ceil(math.log2(least / each))) for each in odd)


def _power(values: npt.NDArray[np.complex128], times: int) -> npt.NDArray[np.complex128]:
    """``values ** times`` by squaring, which keeps more digits than a complex logarithm."""
    result, square = None, values
    while times:
        if times & 1:
            result = square if result is None else result * square
        times >>= 1
        square = square * square if times else square
    return values if result is None else result
