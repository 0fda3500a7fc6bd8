"""Noise of DP-FTRL: each round's running sum gets the noise of a few nodes of a binary tree, and no sampling need be secret.

Round t is a leaf; the running sum after round t is covered by one node for each bit of t, and each node has noise of its own. A unit that
contributes to one round is in one node of each level, so the whole tree costs one Gaussian release a level, however many rounds there are.
Noise of a node is drawn again from its own key whenever it is needed, so nothing is kept but the key.

Sources: Dwork et al. 2010; Kairouz et al. 2021 (DP-FTRL).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fedscale.errors import PlanError
from fedscale.privacy.events import Mechanism, Spend
from fedscale.privacy.noise import Floats, gaussian


@dataclass(frozen=True, slots=True)
class Tree:
    """The noise of one tree.

    Args:
        rounds: leaves: rounds until the tree is done and another is begun.
        size: coordinates.
        sigma: standard deviation of each node's noise.
        key: 32 secret bytes.
    """

    rounds: int
    size: int
    sigma: float
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.size < 1:
            raise PlanError("a tree of noise needs at least one round and one coordinate", where="strategy.rounds")

    def running(self, after: int) -> Floats:
        """The noise on the sum of rounds 1 to ``after``, shape ``(size,)``, of variance ``sigma^2`` times the number of bits set in ``after``.

        Raises:
            PlanError: the tree has no such round.
        """
        return self._noise(self._cover(after), [])

    def step(self, number: int) -> Floats:
        """What to add to round ``number``, from 1, so that all rounds so far together have ``running(number)``; shape ``(size,)``.

        Raises:
            PlanError: the tree has no such round.
        """
        before, now = self._cover(number - 1), self._cover(number)
        return self._noise([node for node in now if node not in before], [node for node in before if node not in now])

    def _cover(self, after: int) -> list[tuple[int, int]]:
        """The nodes of a running sum, from the largest on."""
        if not 0 <= after <= self.rounds:
            raise PlanError(f"a tree of {self.rounds} rounds has no round {after}", where="strategy.rounds")
        return list(nodes_of(after))

    def _noise(self, plus: list[tuple[int, int]], minus: list[tuple[int, int]]) -> Floats:
        """The noise of some nodes less that of others, one node at a time."""
        total = np.zeros(self.size)
        for nodes, add in ((plus, np.add), (minus, np.subtract)):
            for level, index in nodes:
                key = hashlib.blake2b(f"{level}/{index}".encode(), key=self.key, digest_size=32).digest()
                add(total, gaussian(self.size, self.sigma, key), out=total)
        return total

    def spend(self, sensitivity: float) -> Spend:
        """What the whole tree costs a unit that contributes at most ``sensitivity`` to one round."""
        return Spend(str(Mechanism.TREE), self.sigma / sensitivity, 1.0, self.rounds)


def nodes_of(after: int) -> Iterator[tuple[int, int]]:
    """The nodes that cover rounds 1 to ``after``: level, and index among those of its level, each covering ``2**level`` rounds."""
    begun = 0
    for level in reversed(range(after.bit_length())):
        if after >> level & 1:
            yield level, begun >> level
            begun += 1 << level
