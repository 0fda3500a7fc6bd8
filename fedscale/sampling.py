"""Cohorts and orders: who is asked in a round and in which order rows are seen, as pure functions of seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedscale.errors import PlanError
from fedscale.names import Names


def cohort(seed: int, number: int, eligible: Iterable[str], size: int) -> tuple[str, ...]:
    """Choose ``size`` of the eligible nodes uniformly without replacement.

    The choice depends on the set of nodes, not on their order, and on nothing else; it costs one draw a node, and a sort of
    the nodes unless they are ``Names``.

    Raises:
        PlanError: fewer nodes are eligible than asked for.
    """
    nodes = Names.of(eligible)
    if not 0 < size <= len(nodes):
        raise PlanError(f"cannot choose {size} of {len(nodes)} nodes")
    if size == len(nodes):
        return tuple(nodes)
    # The smallest of independent uniform draws; Philox's raw stream is fixed for ever, unlike Generator.choice.
    draws = np.random.Philox(key=np.array([seed % 2**64, number], np.uint64)).random_raw(len(nodes))
    return nodes.picked(np.sort(np.argpartition(draws, size - 1)[:size]))


def derived_seed(seed: int, number: int, name: str) -> int:
    """A seed of 63 bits for one node in one round: the same in a simulation and in a deployment."""
    digest = hashlib.blake2b(f"{seed}/{number}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Shuffle:
    """Draws orders of rows; one is used again and again, because making a generator takes longer than a draw."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._fresh = self._bits.state
        self._key = self._fresh["state"]["key"]

    def seed(self, seed: int) -> None:
        """Begin the stream of a seed."""
        self._key[0] = seed
        self._bits.state = self._fresh

    def draw(self, rows: int) -> npt.NDArray[np.int64]:
        """The next order of so many rows, shape ``(rows,)``: raw bits and a stable sort, because numpy keeps only those
        equal between its versions.
        """
        return self._bits.random_raw(rows).argsort(kind="stable")
