"""Two attacks on what a server holds: was this record in the training, and what did the record look like.

Both work on the gradient of a linear layer with a bias under the logistic loss, where they are known to work perfectly on what plain
federated averaging sends: they must succeed there, or their failure elsewhere would mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale.vector import Vector

Rows: TypeAlias = npt.NDArray[np.float32]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Records:
    """Labelled rows: ``features`` of shape ``(n, width)``, ``labels`` 0 or 1 of shape ``(n,)``."""

    features: Rows
    labels: Rows

    @classmethod
    def made_up(cls, count: int, width: int, chance: np.random.Generator) -> Records:
        """Rows of standard Gaussian features and fair labels."""
        return cls(chance.standard_normal((count, width), np.float32), chance.integers(0, 2, count).astype(np.float32))

    def part(self, at: slice) -> Records:
        """Some of the rows."""
        return Records(self.features[at], self.labels[at])

    def gradients(self) -> Rows:
        """The gradient of each row's loss at a model of zeros, bias last, shape ``(n, width + 1)``."""
        slopes = np.float32(0.5) - self.labels
        rows: Rows = slopes[:, None] * np.hstack([self.features, np.ones((len(self.labels), 1), np.float32)])
        return rows


def membership(held: Vector, members: Records, others: Records) -> float:
    """How well the share of its gradient in what the server holds tells a member from another: area under the curve; 0.5 is a guess."""
    inside, outside = (_shares(held, records) for records in (members, others))
    order = np.sort(outside)
    below = np.searchsorted(order, inside, side="left") + np.searchsorted(order, inside, side="right")
    return float(below.mean() / (2 * len(outside)))


def _shares(held: Vector, records: Records) -> Floats:
    rows = records.gradients().astype(np.float64)
    shares: Floats = rows @ held.astype(np.float64) / np.linalg.norm(rows, axis=1)
    return shares


def inverted(held: Vector) -> Rows:
    """The features behind a gradient of one row: the weights' part over the bias' part; zeros where the bias' part is 0."""
    return held[:-1] / held[-1] if held[-1] else np.zeros(len(held) - 1, np.float32)


def likeness(guess: Rows, truth: Rows) -> float:
    """The cosine of two rows in [-1, 1]; 0 where one is all zeros."""
    lengths = float(np.linalg.norm(guess.astype(np.float64)) * np.linalg.norm(truth.astype(np.float64)))
    return float(guess.astype(np.float64) @ truth.astype(np.float64) / lengths) if lengths else 0.0
