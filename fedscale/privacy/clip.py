"""What one node can contribute at most: clipping, weights that are equal or capped, and a clip that finds its own size.

The sum of what ``contribution`` returns changes by at most ``clip`` in L2 norm when one node comes or goes, whatever its number of examples:
sensitivity follows from the code and is never an argument. The mean is taken over a fixed number, which tells nothing of who answered.

The adaptive clip is that of Andrew et al. 2021: each node says, as one noisy bit, whether its change was within the clip; the clip moves
geometrically towards the norm that a wanted share of nodes stays within. In a round the sum is clipped and noised with the clip as it was
at its beginning; only then does the clip move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fedscale.errors import PlanError, UpdateRejected
from fedscale.vector import Vector

# Dividing and rounding in float32 can leave a norm this much above the clip.
ROUNDING = 1e-6


def norm_of(change: Vector) -> float:
    """The L2 norm of a model change, summed in float64.

    Raises:
        UpdateRejected: a value is not finite; a comparison with NaN would let it pass a clip.
    """
    norm = math.sqrt(float(np.dot(change.astype(np.float64), change.astype(np.float64))))
    if not math.isfinite(norm):
        raise UpdateRejected("a model change has a value that is not finite", hint="lower the learning rate")
    return norm


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
    norm = norm_of(change)
    within = clip / max(norm, clip) * (1 - ROUNDING if norm > clip * (1 - ROUNDING) else 1.0)
    return change * np.float32(within * min(weight, weight_cap) / weight_cap)


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
    """A clip on its way to a quantile of the norms.

    Args:
        clip: of this round.
        quantile: share of nodes whose changes are to be within it.
        rate: how fast it moves; 0.2 as in the paper.
        planned: nodes a round; what the bits are divided by.
    """

    clip: float
    planned: int
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.clip < math.inf and 0 <= self.quantile <= 1 and self.rate > 0 and self.planned >= 1):
            raise PlanError("the adaptive clip is malformed", where="privacy.clip", why="clip, rate and nodes positive, the quantile within 0 and 1")

    @property
    def bit_noise(self) -> float:
        """Standard deviation of the noise on the sum of bits: a twentieth of the nodes, as in the paper."""
        return self.planned / 20

    def bit(self, norm: float) -> float:
        """What a node adds to the sum of bits: 1/2 where its norm is within the clip, -1/2 where not, so that coming or going changes 1/2."""
        return 0.5 if norm <= self.clip else -0.5

    def moved(self, bits: float) -> AdaptiveClip:
        """The clip of the next round.

        Args:
            bits: the noisy sum of all bits.
        """
        share = bits / self.planned + 0.5
        return replace(self, clip=self.clip * math.exp(-self.rate * (share - self.quantile)))

    def noise_on_sum(self, noise_multiplier: float) -> float:
        """The noise multiplier for the sum of changes with which sum and bits together cost what ``noise_multiplier`` says.

        Raises:
            PlanError: the bits alone cost more.
        """
        left = noise_multiplier**-2 - (2 * self.bit_noise) ** -2
        if left <= 0:
            raise PlanError("the bits of the adaptive clip alone would cost more", where="clients.min_per_round", hint="plan more nodes a round")
        return 1 / math.sqrt(left)
