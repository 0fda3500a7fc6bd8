"""Cohorts: who is asked in a round, as a pure function of (seed, round, eligible nodes)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedscale.errors import PlanError


def cohort(seed: int, number: int, eligible: Iterable[str], size: int) -> tuple[str, ...]:
    """Choose ``size`` of the eligible nodes uniformly without replacement.

    The choice depends on the set of nodes, not on their order, and on nothing else; it costs one draw a node.

    Raises:
        PlanError: fewer nodes are eligible than asked for.
    """
    nodes = sorted(set(eligible))
    if not 0 < size <= len(nodes):
        raise PlanError(f"cannot choose {size} of {len(nodes)} nodes")
    if size == len(nodes):
        return tuple(nodes)
    # The smallest of independent uniform draws; Philox's raw stream is fixed for ever, unlike Generator.choice.
    draws = np.random.Philox(key=np.array([seed % 2**64, number], np.uint64)).random_raw(len(nodes))
    return tuple(sorted(nodes[i] for i in np.argpartition(draws, size - 1)[:size]))


def derived_seed(seed: int, number: int, name: str) -> int:
    """A seed of 63 bits for one node in one round: the same in a simulation and in a deployment."""
    words = np.frombuffer(name.encode().ljust(-(-len(name.encode()) // 4) * 4, b"\0"), "<u4")
    state = np.random.SeedSequence([seed, number, len(name), *words.tolist()]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
