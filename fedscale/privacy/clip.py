"""What one node can contribute at most: clipping, weights that are equal or capped, and a clip that finds its own size.

The sum of what ``contribution`` returns changes by at most ``clip`` in L2 norm when one node comes or goes, whatever its number of examples:
sensitivity follows from the code and is never an argument. The mean is taken over a fixed number, which tells nothing of who answered.

The adaptive clip is that of Andrew et al. 2021: each node says, as one noisy bit, whether its change was within the clip; the clip moves
geometrically towards the norm that a wanted share of nodes stays within. In a round the sum is clipped and noised with the clip as it was
at its beginning; only then does the clip move. The bit is one more coordinate of the change, so that one noise hides both, and whatever
hides a single answer hides its bit too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale.errors import PlanError, UpdateRejected
from fedscale.vector import Vector

Floats: TypeAlias = npt.NDArray[np.float64]

# Dividing and rounding in float32 can leave a norm this much above the clip.
ROUNDING = 1e-6
# What a bit weighs against the change, in clips. The two are hidden together, so that the bit takes 2 % more noise on the change.
BIT = 0.2


def norm_of(change: Vector) -> float:
    """The L2 norm of a model change, summed in float64.

    Raises:
        UpdateRejected: a value is not finite; a comparison with NaN would let it pass a clip.
    """
    wide = change.astype(np.float64)
    norm = math.sqrt(float(np.dot(wide, wide)))
    if not math.isfinite(norm):
        raise UpdateRejected("a model change has a value that is not finite", hint="lower the learning rate")
    return norm


def within(norms: float | Floats, clip: float) -> Floats:
    """What changes of these norms are to be multiplied by, so that none is beyond the clip; of the norms' shape."""
    return clip / np.maximum(norms, clip) * np.where(norms > clip * (1 - ROUNDING), 1 - ROUNDING, 1.0)


def contribution(change: Vector, clip: float, weight: float = 1.0, weight_cap: float = 1.0) -> Vector:
    """What a node adds to the sum: float32 of the change's shape, of norm ``clip * min(weight, weight_cap) / weight_cap`` at most.

    Args:
        change: of the model.
        clip: largest norm that counts.
        weight: of the node, as its number of examples; 1 where all nodes count the same.
        weight_cap: from where on a node counts no more; also what the sum is divided by for each planned node.

    Raises:
        UpdateRejected: a value is not finite, or a weight is not positive.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise UpdateRejected("the weight of a node is not positive")
    return change * np.float32(within(norm_of(change), clip) * min(weight, weight_cap) / weight_cap)


def mean(total: Vector, planned: int) -> Vector:
    """The sum of contributions over the fixed number of planned nodes, whoever answered.

    Raises:
        PlanError: fewer than one.
    """
    if planned < 1:
        raise PlanError("a private mean needs at least one planned node", where="clients.min_per_round")
    return total / np.float32(planned)


@dataclass(frozen=True, slots=True)
class AdaptiveClip:
    """The clip of one round on its way to a quantile of the norms.

    Args:
        clip: of this round.
        quantile: share of nodes whose changes are to be within it.
        rate: how fast it moves; 0.2 as in the paper.
    """

    clip: float
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot move a clip."""
        if not (0 < self.clip < math.inf and 0 < self.quantile < 1 and self.rate > 0):
            raise PlanError("the adaptive clip is malformed", where="privacy.clip", why="clip and rate positive, the quantile between 0 and 1")

    @property
    def bit(self) -> float:
        """Magnitude of the coordinate that says whether a change was within the clip."""
        return BIT * self.clip

    def said(self, norms: float | Floats) -> Floats:
        """The bit of changes of these norms: up where a change was within the clip, down where not."""
        return np.copysign(self.bit, self.clip - norms)

    def coded(self, change: Vector) -> Vector:
        """What a node adds to the sum: its change, clipped, and the bit behind it.

        Raises:
            UpdateRejected: a value of the change is not finite.
        """
        return np.append(contribution(change, self.clip), np.float32(self.said(norm_of(change))))

    def moved(self, mean: Vector) -> float:
        """The clip of the next round, from a mean of changes with their bits.

        Noise can make the share of nodes less than none or more than all; no clip moves farther than such a share would move it.
        """
        share = min(max(0.5 + float(mean[-1]) / (2 * self.bit), 0.0), 1.0)
        return self.clip * math.exp(-self.rate * (share - self.quantile))
