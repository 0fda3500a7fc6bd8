"""One node's answer as one vector: ``[weight * delta | weight | metric sums]``.

The weight and the metric sums are extra coordinates, so one sum gives the weighted mean of the model changes and the
pooled metrics, and whatever hides the vector hides the number of patients and the metrics too. An answer carries no
header: its length and meaning come from the round's ``Layout``, which both sides hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from fedscale.errors import UpdateRejected
from fedscale.metrics import Metric, Sums
from fedscale.ring import BEYOND, LIMBS, LIMIT, SPARE_BITS, WORD, Extremes, FixedPoint, Pieces, Words, add, from_limbs, to_limbs
from fedscale.vector import Vector


@dataclass(frozen=True, slots=True)
class Update:
    """What a node computed, before it is laid out as one vector.

    Args:
        delta: change of the model, float32 of shape ``(size,)``; empty when nothing was trained.
        weight: number of examples behind it, or 1 where all nodes count the same.
        metrics: sums over the examples, by name.
    """

    delta: Vector
    weight: float
    metrics: Mapping[str, Sums] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How the answers of one round are laid out and added up.

    Args:
        size: coordinates of the model; 0 for a round that only evaluates.
        metrics: what is pooled, in order.
        terms: most answers that may be summed; fixes the headroom of the ring.
        bound: largest magnitude of one coordinate of a model change.
        weight_cap: largest weight of one node.
        bits: of one word on the wire; 24 under secure aggregation that asks for it.
        clip: largest norm of a change, where that moves from round to round and the last coordinate says whether it was kept; else 0.
    """

    size: int
    metrics: tuple[Metric, ...]
    terms: int
    bound: float = 8.0
    weight_cap: float = LIMIT
    bits: int = 32
    clip: float = 0.0

    @cached_property
    def format(self) -> FixedPoint:
        """The fixed point format of the model coordinates."""
        return FixedPoint.for_sum(self.terms, self.bound, self.bits - SPARE_BITS)

    @cached_property
    def length(self) -> int:
        """Words of one answer."""
        return self.size + LIMBS * (1 + sum(m.width for m in self.metrics))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the metrics are called, in order."""
        return tuple(metric.name for metric in self.metrics)

    @property
    def nbytes(self) -> int:
        """Bytes of one answer on the wire, filled up to whole words."""
        return -(-self.length * self.bits // (8 * WORD.itemsize)) * WORD.itemsize

    def encode(self, update: Update) -> Words:
        """Lay an update out in the ring.

        Raises:
            UpdateRejected: wrong length or dtype, a value that is not finite or beyond its bound, or a bad weight.
        """
        self._require_fit(update, 1)
        words = np.empty(self.length, WORD)
        # Dividing by the cap keeps a weighted coordinate within the bound of an unweighted one.
        self.format.encode(update.delta, words[: self.size], update.weight / self.weight_cap)
        to_limbs(self._numbers(update), words[self.size :], self.terms)
        return words

    def add(self, update: Update, total: Words, count: int = 1) -> None:
        """``total += encode(update)`` in one pass over the model, after all checks, so that an error leaves the total as it was.

        Args:
            update: one node's update, or the mean of those of ``count`` nodes with their summed weight and metric sums.
            total: the sum so far, shape ``(length,)``.
            count: how many nodes are behind the update.

        Raises:
            UpdateRejected: as ``encode`` and ``check``.
        """
        self._require_fit(update, count)
        factor = update.weight / self.weight_cap
        if not self.format.holds(update.delta, factor, self.bound * factor):
            self.encode(replace(update, weight=update.weight / count))  # which says where; what a rounding hides is caught next
            raise UpdateRejected("a value is beyond the agreed range", hint=BEYOND)
        numbers = self._numbers(update)
        tail = np.empty(len(numbers) * LIMBS, WORD)
        to_limbs(numbers, tail, self.terms / count)
        self._require_counts(update.weight, update.metrics)
        self.format.add(update.delta, factor, total[: self.size])
        add(total[self.size :], tail)

    def _require_fit(self, update: Update, count: int) -> None:
        """Refuse a change of another length, or a weight that so many nodes cannot have."""
        if update.delta.dtype != np.float32 or update.delta.shape != (self.size,):
            raise UpdateRejected(
                f"a model change of shape {update.delta.shape} and dtype {update.delta.dtype} does not fit {self.size} float32 coordinates"
            )
        if not (math.isfinite(update.weight) and 0 < update.weight <= self.weight_cap * count):
            raise UpdateRejected("the weight of an answer is not within its bounds", why=f"it must be above 0 and at most {self.weight_cap:g}")

    def _numbers(self, update: Update) -> Sums:
        """The weight and all metric sums, in order."""
        numbers = [np.array([update.weight])]
        for metric in self.metrics:
            sums = np.asarray(update.metrics.get(metric.name, ()), np.float64)
            if sums.shape != (metric.width,):
                raise UpdateRejected(f"metric '{metric.name}' has {sums.size} values, the plan asks for {metric.width}")
            numbers.append(sums)
        return np.concatenate(numbers)

    def _bounded(self, words: Pieces, weight: float, seen: Extremes | None = None) -> None:
        """Refuse an answer of that weight with a coordinate beyond the bound: the cap leaves room that a small weight must not use."""
        at = self.format.beyond(words, self.bound * weight / self.weight_cap, self.size, seen)
        if at is not None:
            raise UpdateRejected("a value is beyond the agreed range", where=f"coordinate {at}", hint=BEYOND)

    def tail(self, words: Pieces) -> tuple[float, dict[str, Sums]]:
        """Weight and metric sums of an answer or of a sum of answers."""
        numbers = from_limbs(words[self.size :])
        sums: dict[str, Sums] = {}
        at = 1
        for metric in self.metrics:
            sums[metric.name] = numbers[at : at + metric.width]
            at += metric.width
        return float(numbers[0]), sums

    def mean(self, words: Words, weight: float, *, consume: bool = False) -> Vector:
        """Weighted mean of the model changes behind a sum whose weights add up to ``weight``; with ``consume`` it takes the sum's place."""
        return self.format.decode(words[: self.size], weight / self.weight_cap, consume=consume)

    def check(self, words: Pieces, seen: Extremes | None = None) -> None:
        """Refuse an answer, seen in the clear, that no honest node could have sent; it is read once, in pieces.

        Args:
            words: the answer.
            seen: the extremes of its coordinates, if they were taken as it arrived; it need not be read then.

        Raises:
            UpdateRejected: wrong length or dtype, weight or counts out of bounds, a coordinate beyond its bound.
        """
        if words.dtype != WORD or words.shape != (self.length,):
            raise UpdateRejected(f"an answer of {words.size} words of {words.dtype}", why=f"the round asks for {self.length} words of {WORD}")
        if (words[self.size :] >> np.uint32(12)).any():
            raise UpdateRejected("the weight or a metric of an answer is malformed", why="one answer has limbs of 12 bits")
        weight, sums = self.tail(words)
        if not 0 < weight <= self.weight_cap:
            raise UpdateRejected("the weight of an answer is not within its bounds", why=f"it must be above 0 and at most {self.weight_cap:g}")
        for metric in self.metrics:
            if np.abs(sums[metric.name]).max() > LIMIT / self.terms:
                raise UpdateRejected(f"metric '{metric.name}' is too large", why=f"the limit is {LIMIT / self.terms:.0f}")
        self._require_counts(weight, sums)
        self._bounded(words, weight, seen)

    def check_sum(self, words: Words, count: int) -> None:
        """Refuse the sum of ``count`` answers nobody saw, if honest nodes could not have sent them.

        Raises:
            UpdateRejected: the weight or the counts are out of bounds.
        """
        weight, sums = self.tail(words)
        if not 0 < weight <= self.weight_cap * count:
            raise UpdateRejected("the weight of a sum is not within its bounds", why=f"{count} nodes have at most {self.weight_cap:g} each")
        self._require_counts(weight, sums)

    def _require_counts(self, weight: float, sums: Mapping[str, Sums]) -> None:
        """Refuse histograms that count more examples than there are, or fewer than none."""
        for metric in self.metrics:
            counts = sums[metric.name]
            if metric.width > 1 and (counts.min() < 0 or counts.sum() > weight * (1 + 1e-6) + 1):
                raise UpdateRejected(f"metric '{metric.name}' counts more examples than the answer's weight, or fewer than none")
