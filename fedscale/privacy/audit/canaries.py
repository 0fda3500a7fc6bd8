"""Canaries: contributions made up so that what a release did to each of them can be read from it.

``estimate`` is the alarm (Andrew et al. 2023): all canaries are in, and the mean and the spread of what is left of them tell the sensitivity
and the noise that were really there. ``lower_bound`` is the certificate (Steinke, Nasr, Jagielski 2023): each canary is in or not by the
toss of a coin, and who can guess the tosses too well has shown, with a stated confidence, that epsilon is at least so much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale.errors import ConfigError
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import LEAST_NOISE, MOST_NOISE, Mechanism, Spend
from fedscale.vector import Vector

Matrix: TypeAlias = npt.NDArray[np.float32]
Scores: TypeAlias = npt.NDArray[np.float64]

# Standard errors between an estimate and what was claimed before there is an alarm: about once in 30,000 honest releases.
ALARM = 4.0
# More noise than claimed does no harm; so many times as much is none.
WILD = 4.0
CONFIDENCE = 0.95
SIGNAL, NOISE, SPREAD, CERTIFICATE = "signal", "noise", "spread", "certificate"


@lru_cache(maxsize=4)
def _walsh(count: int, size: int) -> Matrix:
    """Rows 1 to ``count`` of the Hadamard matrix of a power of two, scaled to norm 1."""
    places = np.arange(1, count + 1, dtype=np.uint32)[:, None] & np.arange(size, dtype=np.uint32)
    for shift in (16, 8, 4, 2, 1):
        places ^= places >> np.uint32(shift)
    rows: Matrix = (1 - 2 * (places & 1).astype(np.float32)) / np.float32(math.sqrt(size))
    return rows


def canaries(count: int, size: int, chance: np.random.Generator) -> Matrix:
    """Orthogonal vectors of norm 1 in a random orientation, shape ``(count, size)``.

    Raises:
        ConfigError: ``size`` is no power of two above ``count``.
    """
    if size & (size - 1) or not 1 <= count < size:
        raise ConfigError(f"{count} canaries do not fit into {size} coordinates", where="size", hint="take a power of two above their number")
    signs = np.array([-1, 1], np.float32)
    rows: Matrix = _walsh(count, size) * chance.choice(signs, size) * chance.choice(signs, (count, 1))
    return rows


def scores(released: Vector, planted: Matrix, clip: float) -> Scores:
    """How much of each canary is in a released sum, shape ``(count,)``: 1 where one was clipped and added, 0 where it was not."""
    return (planted @ released).astype(np.float64) / clip


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a release with all canaries in it shows.

    Args:
        signal: mean score; 1 where sensitivity is the clip.
        noise: standard deviation of the scores; the noise multiplier where the noise is the claimed one.
        error: standard error of the noise.
        epsilon: what noise over signal costs at the claimed delta, or infinite.
        flags: what is wrong: ``signal``, ``noise`` or ``spread``; empty where nothing is.
    """

    signal: float
    noise: float
    error: float
    epsilon: float
    flags: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON; an infinite epsilon is ``None``."""
        bounded = self.epsilon if math.isfinite(self.epsilon) else None
        return {"signal": self.signal, "noise": self.noise, "error": self.error, "epsilon": bounded, "flags": list(self.flags)}


def estimate(found: Scores, claimed: float, delta: float) -> Estimate:
    """Compare the scores of canaries that were all in with a claimed noise multiplier.

    Args:
        found: see ``scores``; at least 2.
        claimed: standard deviation of the noise over the clip.
        delta: at which epsilon is told.
    """
    count = len(found)
    signal, noise = float(found.mean()), float(found.std(ddof=1))
    louder = signal > 1 + ALARM * claimed / math.sqrt(count)
    # More in the sum than clipped units and their noise: something went in that no clip has bounded.
    wilder = noise > WILD * claimed
    quieter = noise**2 < claimed**2 * (1 - ALARM * math.sqrt(2 / count))
    ratio = noise / abs(signal) if signal else math.inf
    cost = math.inf if ratio < LEAST_NOISE else epsilon([Spend(str(Mechanism.GAUSSIAN), min(ratio, MOST_NOISE))], delta)
    flags = (SIGNAL,) * louder + (NOISE,) * quieter + (SPREAD,) * wilder
    return Estimate(signal, noise, noise / math.sqrt(2 * count), cost, flags)


def guesses(found: Scores, inside: npt.NDArray[np.bool_], taken: int) -> int:
    """How many guesses are right if the ``taken`` highest scores are said to be in and as many of the lowest to be out."""
    order = np.argsort(found)
    return int(inside[order[-taken:]].sum() + (~inside[order[:taken]]).sum())


def lower_bound(right: int, made: int, count: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The epsilon that so many right guesses rule out anything below of.

    Args:
        right: guesses that were right.
        made: guesses made; all others were abstained from.
        count: canaries, each in by the toss of a fair coin.
        delta: of the claim.
        confidence: how surely.

    Source: Steinke, Nasr, Jagielski 2023, theorem 5.2 and appendix D.
    """
    low, high = 0.0, 64.0
    if _chance(right, made, count, low, delta) >= 1 - confidence:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _chance(right, made, count, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _chance(right: int, made: int, count: int, epsilon: float, delta: float) -> float:
    """At most how likely so many right guesses are under (epsilon, delta) differential privacy."""
    from scipy.stats import binom

    lucky = 1 / (1 + math.exp(-epsilon))
    beyond = float(binom.sf(right - 1, made, lucky))
    shares = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), made, lucky)) / np.arange(1, right + 1)
    slack = float(shares.max(initial=0.0)) * delta * 2 * count
    return min(1.0, beyond + slack)
