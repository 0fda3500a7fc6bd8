"""What spends cost together, as epsilon at a delta, and how much noise keeps a promise.

``epsilon`` is the number that is reported: an upper bound from privacy loss distributions, within 1e-6 of dp-accounting's PLD accountant for
up to eight different mechanisms in a ledger, and on coarser grids, still from above, for more. ``epsilon_rdp`` is dp-accounting's Renyi bound.
Both are for neighbours that differ by adding or removing one unit; in a tree, by zeroing one. Central limit approximations are never used:
they report less than the truth.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate

import numpy as np

import fedscale
from fedscale.errors import ConfigError
from fedscale.privacy.events import LEAST_NOISE, MOST_NOISE, Mechanism, Spend
from fedscale.privacy.pld import Floats, Pair, gaussian, laplace, together

RELATION = "add or remove one unit"
# Discrete noise is accounted as Gaussian noise on a grid at least this fine: a clip is this many grid steps or more.
GRID_STEPS = 1024
STEP = 1e-4
LEAST_DELTA = 1e-11
PRECISION = 1e-6
# How coarse the common grid is for so many different mechanisms, as a multiple of STEP.
LADDER = ((8, 1), (32, 2), (96, 4), (400, 8), (1200, 16))
COARSEST = 32
# math.erfc is exact down to here and 0 a little below.
FAR = -36.0
# More than logarithms lose to rounding, for each unit of their size.
ROUNDING = 2.0**-50


@dataclass(frozen=True, slots=True)
class _Ledger:
    """Spends grouped exactly: Gaussian releases of everybody add up to one, equal sampled ones are counted.

    Args:
        precision: sum of 1 / noise_multiplier^2 over all Gaussian releases of everybody.
        groups: ``(mechanism, noise, rate), steps``, sorted.
    """

    precision: float
    groups: tuple[tuple[tuple[str, float, float], int], ...]


def accountant() -> str:
    """Name and version of what computes ``epsilon``, for statements."""
    from importlib.metadata import version

    return f"fedscale {fedscale.__version__} PLD; RDP by dp-accounting {version('dp-accounting')}"


def epsilon(spends: Sequence[Spend], delta: float) -> float:
    """The reported epsilon of all spends together: an upper bound; 0 for none, infinite where no finite one is known.

    Raises:
        ConfigError: ``delta`` is not between 0 and 1.
    """
    _require_delta(delta)
    return _epsilon(_grouped(spends), delta)


def epsilon_rdp(spends: Sequence[Spend], delta: float) -> float:
    """The Renyi bound of all spends together, by dp-accounting; quick and, where sampling is rare, loose.

    Raises:
        ConfigError: as ``epsilon``.
    """
    _require_delta(delta)
    return _epsilon_rdp(_grouped(spends), delta)


def rdp_curve(spends: Sequence[Spend], orders: Sequence[float]) -> Floats:
    """Renyi divergences of all spends together at some orders above 1, shape ``(len(orders),)``: what the Renyi bound is made of."""
    return _curve(_grouped(spends), tuple(float(order) for order in orders))


def noise_multiplier(
    epsilon: float,
    delta: float,
    *,
    sampling_rate: float = 1.0,
    steps: int = 1,
    mechanism: str = Mechanism.SAMPLED_GAUSSIAN,
    spent: Sequence[Spend] = (),
) -> float:
    """The least noise, rounded up in the sixth digit, with which so many steps on top of ``spent`` cost at most ``epsilon``.

    Raises:
        ConfigError: a malformed argument, or no noise is enough.
    """
    _require_delta(delta)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError("epsilon must be positive and finite", where="epsilon")
    draft = Spend(str(mechanism), MOST_NOISE, sampling_rate, steps)
    return _noise(epsilon, delta, draft, _grouped(spent))


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError("delta must be between 0 and 1", where="delta", hint="take less than one over the number of units")


def _grouped(spends: Sequence[Spend]) -> _Ledger:
    """The spends in their canonical form; equal ledgers in any order become equal values."""
    whole: Counter[float] = Counter()
    groups: Counter[tuple[str, float, float]] = Counter()
    for spend in spends:
        noise = float(spend.noise_multiplier)
        if spend.mechanism in (Mechanism.DISCRETE_GAUSSIAN, Mechanism.SKELLAM):
            noise = _continuous(noise)
        if spend.mechanism == Mechanism.TREE:
            # In a tree over n steps each unit is in one node of each level.
            whole[noise] += spend.steps.bit_length()
        elif spend.mechanism == Mechanism.LAPLACE:
            groups[(Mechanism.LAPLACE, noise, float(spend.sampling_rate))] += spend.steps
        elif spend.sampling_rate == 1:
            whole[noise] += spend.steps
        else:
            groups[(Mechanism.SAMPLED_GAUSSIAN, noise, float(spend.sampling_rate))] += spend.steps
    precision = math.fsum(times / noise**2 for noise, times in whole.items())
    return _Ledger(precision, tuple(sorted(groups.items())))


def _continuous(noise: float) -> float:
    """The Gaussian noise that costs no less than Skellam or discrete Gaussian noise on a grid of ``GRID_STEPS`` a clip.

    Source: Agarwal, Kairouz, Liu 2021, theorem 3.5, with an L1 norm of at most the squared L2 norm on integers.
    """
    return noise / math.sqrt(1 + 3.5 / (noise * GRID_STEPS) ** 2)


@lru_cache(maxsize=4096)
def _epsilon(ledger: _Ledger, delta: float, finest: float = STEP) -> float:
    if not ledger.groups:
        return _gaussian_epsilon(ledger.precision, delta)
    if delta < LEAST_DELTA:
        return _epsilon_rdp(ledger, delta)
    step = max(finest, STEP * next((factor for most, factor in LADDER if len(ledger.groups) <= most), COARSEST))
    pairs = [_composed(*event, times, step) for event, times in ledger.groups]
    if ledger.precision:
        pairs.append(gaussian(1 / math.sqrt(ledger.precision), 1.0, step))
    quoted = max(together([(pair[side], 1) for pair in pairs]).epsilon(delta) for side in (0, 1))
    return quoted if math.isfinite(quoted) else _epsilon_rdp(ledger, delta)


def _gaussian_epsilon(precision: float, delta: float) -> float:
    """The exact epsilon of Gaussian releases (Balle and Wang 2018, theorem 8), but for rounding, which makes it larger and never smaller."""
    spread = math.sqrt(precision)
    if not precision or _log_delta_gaussian(0.0, spread) <= math.log(delta):
        return 0.0
    low, high = 0.0, 1.0
    while _log_delta_gaussian(high, spread) > math.log(delta):
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _log_delta_gaussian(middle, spread) > math.log(delta) else (low, middle)
    return high


def _log_delta_gaussian(epsilon: float, spread: float) -> float:
    """The logarithm of the delta of a Gaussian release whose noise is 1 / ``spread``; what may be lost to rounding is added."""
    inside, outside = _log_normal(spread / 2 - epsilon / spread), epsilon + _log_normal(-spread / 2 - epsilon / spread)
    lost = ROUNDING * (1 + abs(inside) + epsilon)
    return inside + math.log(-math.expm1(min(outside - inside, 0.0) - lost))


def _log_normal(at: float) -> float:
    """The logarithm of the standard normal distribution function, also where that is too small for a float."""
    if at > 0:
        return math.log1p(-math.erfc(at / math.sqrt(2)) / 2)
    if at > FAR:
        return math.log(math.erfc(-at / math.sqrt(2)) / 2)
    # The asymptotic series: beyond FAR its terms fall below the last digit before they grow.
    terms = accumulate(range(1, 16, 2), lambda term, odd: -term * odd / at**2, initial=1.0)
    return -(at**2) / 2 - math.log(-at * math.sqrt(2 * math.pi)) + math.log(math.fsum(terms))


@lru_cache(maxsize=4096)
def _composed(mechanism: str, noise: float, rate: float, times: int, step: float) -> Pair:
    """The losses of equal releases together, on a grid of ``step``."""
    pair = _event(mechanism, noise, rate, _resolution(noise, rate, step))
    losses = [together([(loss, times)]) if times > 1 else loss for loss in pair]
    going, coming = (loss.coarser(max(1, round(step / loss.step))) for loss in losses)
    return going, coming


def _resolution(noise: float, rate: float, step: float) -> float:
    """A step, from ``STEP`` up to ``step`` in powers of two, that resolves the losses of one release."""
    spread = rate * math.sqrt(math.expm1(min(1 / noise**2, 8.0)))
    return min(step, STEP * 2.0 ** max(0, math.floor(math.log2(spread / 32 / STEP))))


@lru_cache(maxsize=64)
def _event(mechanism: str, noise: float, rate: float, step: float) -> Pair:
    return (laplace if mechanism == Mechanism.LAPLACE else gaussian)(noise, rate, step)


@lru_cache(maxsize=4096)
def _epsilon_rdp(ledger: _Ledger, delta: float) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    if not ledger.groups and not ledger.precision:
        return 0.0
    orders = _orders()
    return float(rdp.compute_epsilon(orders, _curve(ledger, orders), delta)[0])


def _curve(ledger: _Ledger, orders: tuple[float, ...]) -> Floats:
    """Renyi divergences of a ledger."""
    total: Floats = np.asarray(orders, np.float64) * (ledger.precision / 2)
    for event, times in ledger.groups:
        total = total + times * _rdp(*event, orders)
    return total


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    """The orders that dp-accounting takes when nobody says which."""
    from dp_accounting.rdp import RdpAccountant

    # An order that has no value is left out of the minimum, which stays an upper bound: nothing to tell the user.
    logging.getLogger("absl").addFilter(lambda record: "failed to converge" not in str(record.msg))
    return tuple(RdpAccountant().orders)


@lru_cache(maxsize=4096)
def _rdp(mechanism: str, noise: float, rate: float, orders: tuple[float, ...]) -> Floats:
    """Renyi divergences of one release."""
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    # There is no closed form for a sampled Laplace release; the one that is not sampled bounds it.
    event = dp.LaplaceDpEvent(noise) if mechanism == Mechanism.LAPLACE else dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
    return np.asarray(RdpAccountant(orders).compose(event).rdp, np.float64)


@lru_cache(maxsize=256)
def _noise(target: float, delta: float, draft: Spend, spent: _Ledger) -> float:
    """The search behind ``noise_multiplier``: the root of log(epsilon / target) over log(noise), from above; on a coarse grid first."""

    def excess(log_noise: float, finest: float = STEP) -> float:
        spend = Spend(draft.mechanism, math.exp(log_noise), draft.sampling_rate, draft.steps)
        quoted = _epsilon(_joined(spent, _grouped([spend])), delta, finest)
        return math.log(min(max(quoted / target, 1e-6), 1e6))

    guess = math.log(draft.sampling_rate * math.sqrt(draft.steps) / target)
    if not (spent.groups or _grouped([draft]).groups):
        return math.exp(_root(excess, *_bracket(excess, guess, 1.0), 1e-11))
    rough = partial(excess, finest=STEP * COARSEST)
    guess = _root(rough, *_bracket(rough, max(guess, -1.0), 1.0), 1e-3)
    return math.exp(_root(excess, *_bracket(excess, guess, 2e-3), PRECISION))


def _bracket(excess: Callable[[float], float], guess: float, width: float) -> tuple[float, float]:
    """Two logarithms of noise around where a falling function reaches zero, found from a guess in growing steps.

    Raises:
        ConfigError: it is above zero for any noise.
    """
    floor, ceiling = math.log(LEAST_NOISE * 1.001), math.log(MOST_NOISE * 0.999)
    low = high = min(max(guess, floor + width), ceiling)
    while excess(high) > 0:
        if high == ceiling:
            hint = "raise epsilon, or take another delta"
            raise ConfigError("no noise keeps this promise", where="epsilon", why="what was spent before costs as much", hint=hint)
        low, high, width = high, min(high + width, ceiling), width * 2
    while low == high or (excess(low) <= 0 and low > floor):
        low, high, width = max(low - width, floor), low, width * 2
    return low, high


def _root(excess: Callable[[float], float], low: float, high: float, width: float) -> float:
    """Where a falling function reaches zero, at most ``width`` too high (the Illinois form of regula falsi)."""
    above, below = excess(low), excess(high)
    if above <= 0:
        return low
    while high - low > width:
        # A little to the right of the chord's zero, so that both ends close in.
        at = min(max(low + (high - low) * above / (above - below) + width / 3, low + width / 3), high - width / 3)
        found = excess(at)
        if found > 0:
            low, above, below = at, found, below / 2
        else:
            high, below, above = at, found, above / 2
    return high


def _joined(one: _Ledger, other: _Ledger) -> _Ledger:
    groups = Counter(dict(one.groups)) + Counter(dict(other.groups))
    return _Ledger(one.precision + other.precision, tuple(sorted(groups.items())))
