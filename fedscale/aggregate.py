"""Aggregators: mergeable monoids over the answers of a round.

The law, tested for every aggregator: ``merge`` is associative and commutative, ``zero`` is its identity, and adding
answers one by one equals merging any split of them. ``linear`` says that the result depends on the answers through
their ring sum alone; only such aggregators may run where the server sees nothing but sums.

Source: the contract Accumulate, MergeWith, Report of Google's aggregation core; McMahan et al. 2017 for the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from fedscale.errors import RunFailed
from fedscale.metrics import Sums
from fedscale.ring import WORD, Pieces, Words, add
from fedscale.update import Layout
from fedscale.vector import Vector


@dataclass(slots=True)
class Partial:
    """A sum under way: words of shape ``(layout.length,)`` and how many answers are in it."""

    words: Words
    count: int = 0


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What a round yields: the combined model change, the total weight and the pooled metric sums."""

    delta: Vector
    weight: float
    count: int
    metrics: dict[str, Sums] = field(default_factory=dict)


@dataclass(slots=True)
class Answers(Partial):
    """Answers that are kept one by one; ``words`` stays empty."""

    each: list[Words] = field(default_factory=list)


class Aggregator(Protocol):
    """Combines answers: ``zero, add, merge, report``."""

    linear: ClassVar[bool]

    def zero(self, layout: Layout) -> Partial:
        """The neutral element."""

    def add(self, partial: Partial, words: Pieces) -> None:
        """Fold one answer in, in place; ``words[:]`` is all of it for those who need that in memory."""

    def merge(self, partial: Partial, other: Partial) -> None:
        """Fold another partial sum in, in place."""

    def report(self, partial: Partial, layout: Layout) -> Aggregate:
        """The result; the partial sum may be consumed, and so may the change that is returned."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the model changes, weighted by examples (McMahan et al. 2017)."""

    linear: ClassVar[bool] = True

    def zero(self, layout: Layout) -> Partial:
        """All words zero."""
        return Partial(np.zeros(layout.length, WORD))

    def add(self, partial: Partial, words: Pieces) -> None:
        """Ring addition, piece by piece."""
        add(partial.words, words)
        partial.count += 1

    def merge(self, partial: Partial, other: Partial) -> None:
        """Ring addition of two sums."""
        add(partial.words, other.words)
        partial.count += other.count

    def report(self, partial: Partial, layout: Layout) -> Aggregate:
        """Divide the summed changes by the summed weight, in place: a model may be too large to be held once more.

        Raises:
            RunFailed: no answer is in the sum.
        """
        if not partial.count:
            raise RunFailed("a round without answers has no mean")
        weight, metrics = layout.tail(partial.words)
        return Aggregate(layout.mean(partial.words, weight, consume=True), weight, partial.count, metrics)


@dataclass(frozen=True, slots=True)
class Each:
    """Every answer by itself, for a strategy that combines them by a rule of its own; memory grows with their number.

    ``report`` gives one row an answer, ``[change | weight | metric sums]``, sorted by their bytes: who came first does not matter.
    """

    linear: ClassVar[bool] = False

    def zero(self, layout: Layout) -> Answers:  # noqa: ARG002 - the aggregators' shape
        """No answers."""
        return Answers(np.empty(0, WORD))

    def add(self, partial: Partial, words: Pieces) -> None:
        """Keep one more."""
        self.merge(partial, Answers(partial.words, 1, [words[:]]))

    def merge(self, partial: Partial, other: Partial) -> None:
        """Keep those of both.

        Raises:
            RunFailed: one of them holds no more than a sum.
        """
        if not (isinstance(partial, Answers) and isinstance(other, Answers)):
            raise RunFailed("a sum cannot be taken apart into answers")
        partial.each.extend(other.each)
        partial.count += other.count

    def report(self, partial: Partial, layout: Layout) -> Aggregate:
        """All answers, of shape ``(answers, size + 1 + metric sums)``, beside their summed weight and pooled metrics.

        Raises:
            RunFailed: there is none.
        """
        kept = sorted(partial.each, key=np.ndarray.tobytes) if isinstance(partial, Answers) else []
        if not kept:
            raise RunFailed("a round without answers has nothing to combine")
        rows, total, pooled = [], 0.0, dict[str, Sums]()
        for words in kept:
            weight, metrics = layout.tail(words)
            rows.append(np.concatenate([layout.mean(words, weight), np.array([weight]), *metrics.values()], dtype=np.float32))
            total += weight
            pooled = {name: pooled.get(name, np.zeros_like(sums)) + sums for name, sums in metrics.items()}
        return Aggregate(np.stack(rows), total, partial.count, pooled)
