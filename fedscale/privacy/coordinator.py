"""The coordinator's half of a private run: the clip that moves, the noise of a tree, and who must rest until the next tree.

Everything here is a function of the plan, of sums that are opened anyway and of a secret that lies in the checkpoint, so a coordinator
that was killed goes on with the same clip and the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from fedscale.errors import PlanError
from fedscale.privacy.dp import DP
from fedscale.privacy.lots import derived
from fedscale.privacy.rounds import adaptive, in_round, moved, tree_noise, tree_of
from fedscale.privacy.tree import Tree
from fedscale.vector import Vector


@dataclass(frozen=True, slots=True)
class Kept:
    """What a private run keeps from round to round.

    Args:
        clip: of the round, where it moves; 0 for the plan's own.
        secret: 32 bytes from which the coordinator's noise comes.
    """

    clip: float = 0.0
    secret: bytes = field(default=b"", repr=False)

    def opened(self, dp: DP, planned: int, number: int, mean: Vector, weight: float, grid: float) -> tuple[Vector, Kept]:
        """The mean change of a round as the next model may see it, and what is kept for the next round.

        Args:
            dp: the plan's promise.
            planned: rounds of the plan.
            number: the round, from 1.
            mean: of the answers, shape ``(size,)``, with the mean bit behind it where the clip moves.
            weight: how many answers are in it.
            grid: what one step of the ring is worth.

        Raises:
            PlanError: noise is to be added and there is no secret to draw it from.
        """
        if (moving := adaptive(in_round(dp, self.clip))) is not None:
            return mean[:-1], replace(self, clip=moved(dp, moving.moved(mean)))
        if dp.mechanism != "ftrl":
            return mean, self
        if not self.secret:
            raise PlanError("the coordinator has no secret to draw noise from", where="privacy.mechanism")
        at, leaf = divmod(number - 1, tree_of(dp, planned))
        # Rounding to the grid moves the difference of two sums, too.
        reach = dp.clip + math.sqrt(len(mean)) * grid
        tree = Tree(tree_of(dp, planned), len(mean), tree_noise(dp, planned) * reach, derived(self.secret, "tree", at))
        return mean + (tree.step(leaf + 1) / weight).astype(np.float32), self


def resting(dp: DP | None, planned: int, number: int, answered: Iterable[tuple[int, tuple[str, ...]]]) -> frozenset[str]:
    """Who is not asked in a round of training because it has answered in the same tree.

    Args:
        dp: the plan's promise.
        planned: rounds of the plan.
        number: the round.
        answered: earlier rounds of training and who is in their sums.
    """
    if dp is None or dp.mechanism != "ftrl":
        return frozenset()
    begun = number - (number - 1) % tree_of(dp, planned)
    return frozenset(node for earlier, nodes in answered if begun <= earlier < number for node in nodes)
