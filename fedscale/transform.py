"""Transforms: one idea, two halves. What happens to an update at the node is undone on the sum at the server.

Clipping, noise and compression are transforms; a chain encodes left to right and decodes right to left. Source: the
postprocessor pair of Granqvist et al. 2024 (pfl-research).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fedscale.aggregate import Aggregate
from fedscale.errors import PlanError
from fedscale.update import Update


class Transform(Protocol):
    """Two halves: ``encode`` runs at the node, ``decode`` on the aggregate at the server."""

    def encode(self, update: Update) -> Update:
        """Change a node's update before it is laid out."""

    def decode(self, aggregate: Aggregate) -> Aggregate:
        """Undo on the aggregate what ``encode`` did to each update, as far as it can be undone."""


@dataclass(frozen=True, slots=True)
class ClipNorm:
    """Scale a model change down to an L2 norm of at most ``limit``; bounds what one node can do to the model."""

    limit: float

    def __post_init__(self) -> None:
        """Refuse a limit that is not positive."""
        if not self.limit > 0:
            raise PlanError(f"a clip norm of {self.limit} is not positive")

    def encode(self, update: Update) -> Update:
        """Scale by ``min(1, limit / norm)``; a zero update stays zero, one that is not finite stays for the ring to refuse."""
        # In float64, where no finite float32 overflows when squared.
        norm = float(np.linalg.norm(update.delta.astype(np.float64)))
        small = norm <= self.limit or not math.isfinite(norm)
        return update if small else replace(update, delta=update.delta * np.float32(self.limit / norm))

    def decode(self, aggregate: Aggregate) -> Aggregate:
        """Nothing to undo."""
        return aggregate


def encode(transforms: Sequence[Transform], update: Update) -> Update:
    """Apply the node halves, left to right."""
    for transform in transforms:
        update = transform.encode(update)
    return update


def decode(transforms: Sequence[Transform], aggregate: Aggregate) -> Aggregate:
    """Apply the server halves, right to left."""
    for transform in reversed(transforms):
        aggregate = transform.decode(aggregate)
    return aggregate
