"""Pooled metrics: what a node sums over its examples, and what the sums mean.

A metric is a number of coordinates that add up over examples and nodes. Means are ``sum / weight``; the area under the
ROC curve comes from two summed score histograms, so it is the AUC of all patients together and no single score leaves
a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedscale.errors import AppError

Sums = npt.NDArray[np.float64]

BINS = 256
LOGIT_SPAN = 8.0
HIGHER_IS_BETTER = frozenset({"accuracy", "auc"})


@dataclass(frozen=True, slots=True)
class Metric:
    """A named metric and how many coordinates its sums take."""

    name: str
    width: int = 1

    @classmethod
    def named(cls, name: str) -> Metric:
        """The metric of that name: ``auc`` is a pair of score histograms, every other a mean over examples."""
        return cls(name, 2 * BINS if name == "auc" else 1)


def score_histogram(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> Sums:
    """Counts of positives, then of negatives, by score: shape ``(2 * BINS,)``.

    Args:
        scores: logits of the positive class, shape ``(n,)``. Bins are uniform in the logit, where the scores of a
            confident model still differ; those beyond +-8 share the outermost bins.
        labels: 0 or 1, shape ``(n,)``.

    Raises:
        AppError: a label is neither 0 nor 1, or a score is not finite.
    """
    if not np.isin(labels, (0, 1)).all():
        raise AppError("metric 'auc' needs labels 0 and 1", hint="use accuracy for more than two classes")
    if not np.isfinite(scores).all():
        raise AppError("metric 'auc' met a score that is not finite", hint="lower the learning rate")
    inside = (np.clip(scores, -LOGIT_SPAN, LOGIT_SPAN) + LOGIT_SPAN) / (2 * LOGIT_SPAN)
    bins = np.minimum((inside * BINS).astype(np.int64), BINS - 1)
    positive = np.bincount(bins[labels == 1], minlength=BINS)
    negative = np.bincount(bins[labels == 0], minlength=BINS)
    return np.concatenate([positive, negative]).astype(np.float64)


def histogram_auc(sums: Sums) -> float | None:
    """The AUC behind summed histograms, ties within a bin counted half; ``None`` where one class is absent."""
    positive, negative = sums[:BINS], sums[BINS:]
    if not (positive.sum() > 0 and negative.sum() > 0):
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def pooled(sums: Mapping[str, Sums], weight: float) -> dict[str, float]:
    """Metric values from their sums over ``weight`` examples; a metric that is not defined is left out."""
    values = {name: histogram_auc(s) if name == "auc" else float(s[0]) / weight for name, s in sums.items() if weight > 0}
    return {name: value for name, value in values.items() if value is not None}
