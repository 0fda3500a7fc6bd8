"""Fixed point numbers as integers modulo 2^32: the ring in which all linear aggregates are summed.

Float addition is not associative; integer addition modulo 2^k is. Sums in the ring are the same bits for any order of
arrival, any tree of partial sums and any replay after a crash, and adding a mask is the very same operation, so plain
and secure aggregation are one path.

Two encodings share the ring:

* ``FixedPoint``: one word a coordinate, for the model. The scale is a power of two chosen so that a sum of ``terms``
  values, each within ``bound``, stays below 2^30 in magnitude: the headroom is proved, never hoped for.
* ``to_limbs``: five words a number, for weights and metric sums, exact to 2^-20, for sums up to 2^38 of up to 2^19 terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale.errors import PlanError, UpdateRejected
from fedscale.vector import Vector

Words: TypeAlias = npt.NDArray[np.uint32]


class Pieces(Protocol):
    """Words of shape ``(n,)`` that need not be in memory at once: an array, or whatever reads slices of one from where it lies."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """``WORD``, unless somebody made a mistake."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)``."""

    @property
    def size(self) -> int:
        """``n``."""

    def __getitem__(self, part: slice, /) -> Words:
        """Some of them, in order."""


WORD = np.dtype("<u4")
HEADROOM_BITS = 30
SPARE_BITS = 32 - HEADROOM_BITS
LEAST_BITS = 12
LIMBS = 5
LIMB_BITS = 12
FRACTION_BITS = 20
LIMIT = float(1 << 38)
MOST_TERMS = 1 << 19
BLOCK = 1 << 18
PIECE = 1 << 15
SHIFTS = np.arange(LIMBS) * LIMB_BITS
BEYOND = "lower the learning rate or raise aggregate.bound"


class Extremes:
    """The least and the largest of the first words of a stream, as signed integers, taken of each part while it is in the processor's cache.

    Args:
        size: how many words; what comes behind them is not looked at.
    """

    __slots__ = ("_begun", "_left", "least", "most")

    def __init__(self, size: int) -> None:
        self._left, self._begun = size, b""
        self.least = self.most = 0

    def see(self, part: bytes | memoryview) -> None:
        """Look at the next bytes, which may end in the middle of a word."""
        data = self._begun + bytes(part) if self._begun else part
        words = np.frombuffer(data, "<i4", len(data) // WORD.itemsize)
        self._begun = bytes(data[words.nbytes :])
        words = words[: self._left]
        self._left -= len(words)
        self.least = min(self.least, int(words.min(initial=0)))
        self.most = max(self.most, int(words.max(initial=0)))


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """A fixed point format: ``integer = round(value * 2**exponent)``, for sums of values within ``bound``."""

    exponent: int
    bound: float

    @classmethod
    def for_sum(cls, terms: int, bound: float, headroom: int = HEADROOM_BITS) -> FixedPoint:
        """The finest format in which ``terms`` values of magnitude at most ``bound`` add up to at most ``2**headroom``, without wrapping.

        Raises:
            PlanError: fewer than ``LEAST_BITS`` bits would be left for one value.
        """
        if not (1 <= terms <= MOST_TERMS and math.isfinite(bound) and bound > 0):
            raise PlanError(
                f"no ring format for {terms} terms within {bound}",
                where="clients.select",
                why=f"terms must be 1 to {MOST_TERMS}, the bound positive and finite",
            )
        exponent = math.floor(headroom - math.log2(terms) - math.log2(bound))
        while terms * bound * 2.0**exponent > 2.0**headroom:
            exponent -= 1
        if bound * 2.0**exponent < 2.0**LEAST_BITS:
            raise PlanError(
                f"the ring is too short for {terms} nodes",
                where="clients.select",
                why=f"less than {LEAST_BITS} bits a value are left",
                hint="lower clients.select",
            )
        return cls(exponent, bound)

    def encode(self, values: Vector, out: Words, factor: float = 1.0) -> None:
        """Round ``values * factor`` (shape ``(n,)``) half to even into ``out`` (same shape), block by block, without a copy of the whole.

        Args:
            values: each within ``bound``.
            out: where the integers go.
            factor: above 0 and at most 1.

        Raises:
            UpdateRejected: a value is not finite or lies beyond ``bound``; nothing is ever clipped silently. The error
                carries the coordinate in ``where`` as ``coordinate N``.
        """
        # Multiplying float32 by a power of two is exact, so what is rounded is the product with the factor, and rint rounds.
        scale = np.float32(factor * 2.0**self.exponent)
        limit = np.float32(min(self.bound * 2.0**self.exponent, self.limit(self.bound * factor)))
        for start in range(0, len(values), BLOCK):
            with np.errstate(over="ignore", invalid="ignore"):
                block = values[start : start + BLOCK] * scale
            # Written so that NaN fails as well: every comparison with NaN is false.
            if not (-limit <= block.min() and block.max() <= limit):
                at = start + int(np.flatnonzero(~(np.abs(block) <= limit))[0])
                kind = "beyond the agreed range" if np.isfinite(values[at]) else "not finite"
                raise UpdateRejected(f"a value is {kind}", where=f"coordinate {at}", hint=BEYOND)
            np.rint(block, out=block)
            out[start : start + BLOCK].view(np.int32)[:] = block

    def holds(self, values: Vector, factor: float, bound: float) -> bool:
        """Whether all ``values * factor``, as integers of this format, are those of numbers within ``bound``; float32 rounding is forgiven."""
        scale, limit = float(np.float32(factor * 2.0**self.exponent)), self.limit(bound)
        least, most = float(np.minimum.reduce(values, initial=0)), float(np.maximum.reduce(values, initial=0))
        return -limit <= _rounded(least * scale) and _rounded(most * scale) <= limit

    def add(self, values: Vector, factor: float, total: Words) -> None:
        """``total += encode(values * factor)`` for a positive factor, in pieces that stay in the processor's cache; nothing is checked."""
        scale, sums = np.float32(factor * 2.0**self.exponent), total.view(np.int32)
        for start in range(0, len(values), PIECE):
            piece, here = values[start : start + PIECE] * scale, sums[start : start + PIECE]
            np.add(here, np.rint(piece, out=piece).astype(np.int32), out=here)  # "+=" on a slice would write everything twice

    def decode(self, words: Words, divisor: float = 1.0, *, consume: bool = False) -> Vector:
        """The values of a sum, each divided by ``divisor``: float32, shape of ``words``, and in their place where they may be consumed."""
        values = words.view(np.float32) if consume else np.empty(words.shape, np.float32)
        factor = 2.0**-self.exponent / divisor
        for start in range(0, len(words), BLOCK):
            values[start : start + BLOCK] = words[start : start + BLOCK].view(np.int32) * factor
        return values

    def limit(self, bound: float) -> int:
        """The largest integer that a value within ``bound`` may become; float32 rounding is forgiven."""
        return math.ceil(bound * 2.0**self.exponent * (1 + 2.0**-22))

    def beyond(self, words: Pieces, bound: float, size: int, seen: Extremes | None = None) -> int | None:
        """The first of ``size`` coordinates whose value is larger than ``bound`` in magnitude, or ``None``; float32 rounding is forgiven.

        Where it was ``seen`` that there is none, nothing is read.
        """
        limit = self.limit(bound)
        if seen is not None and -limit <= seen.least and seen.most <= limit:
            return None
        for start in range(0, size, BLOCK):
            block = words[start : min(start + BLOCK, size)].view(np.int32)
            if block.max() > limit or block.min() < -limit:
                return start + int(np.flatnonzero((block > limit) | (block < -limit))[0])
        return None


def _rounded(value: float) -> float:
    """The exact product of two float32 as float32 has it, rounded half to even; one far beyond every format as it is."""
    return round(float(np.float32(value))) if abs(value) < LIMIT else value


def to_limbs(numbers: Sequence[float] | npt.NDArray[np.float64], out: Words, terms: float = 1) -> None:
    """Write each number as five words of 12 bits, least first; ``out`` has shape ``(5 * n,)``.

    Raises:
        UpdateRejected: a number is not finite, or so large that ``terms`` of them may pass the limit.
    """
    values = np.asarray(numbers, np.float64)
    if not np.maximum.reduce(np.abs(values), axis=None, initial=0) <= LIMIT / terms:
        why, hint = f"the limit is {LIMIT / terms:.0f}", "scale the features, or lower the learning rate"
        raise UpdateRejected("a weight or metric is not finite or too large", why=why, hint=hint)
    integers = np.rint(values * 2.0**FRACTION_BITS).astype(np.int64)
    out.reshape(-1, LIMBS)[:] = (integers[:, None] >> SHIFTS) & ((1 << LIMB_BITS) - 1)


def from_limbs(words: Words) -> npt.NDArray[np.float64]:
    """The sums behind summed limbs: float64 of shape ``(n,)`` from words of shape ``(5 * n,)``."""
    limbs = words.reshape(-1, LIMBS).astype(np.uint64)
    total = (limbs << (np.arange(LIMBS, dtype=np.uint64) * np.uint64(LIMB_BITS))).sum(axis=1)
    # Negative numbers were written in two's complement of 60 bits; bring the sum back to the signed range.
    spare = 64 - LIMBS * LIMB_BITS
    signed: npt.NDArray[np.int64] = (total << np.uint64(spare)).view(np.int64) >> spare
    return signed.astype(np.float64) / 2.0**FRACTION_BITS


def add(total: Words, words: Pieces) -> None:
    """``total += words`` modulo 2^32, in place and block by block: associative, commutative, with zeros as identity."""
    for start in range(0, len(total), BLOCK):
        block = total[start : start + BLOCK]
        np.add(block, words[start : start + BLOCK], out=block)
