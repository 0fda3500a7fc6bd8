"""What an aggregation tree would cost, computed from what one coordinator was measured at; docs/scaling.md explains the model.

``python -m benchmarks.scaling`` prints the table of that page, ``python -m benchmarks scaling`` its figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import Figure
from fedscale.ring import FixedPoint

# Measured on the reference machine (docs/scorecard.md): see there for the commands.
INGEST, STREAM, CONNECTING = 122e6, 143 * 1024.0, 89.0
FANOUT, LEAF = 50, 1_000
BOUND, BITS, RING = 8.0, 30, 1 << 18  # the most answers within this bound that a sum of 32 bit words can hold
CLIENTS = (100, 1_000, 10_000, 100_000, 1_000_000)
MODELS = {"1 MB": 1e6, "128 MiB": 128 * 2.0**20}


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of coordinators in which each adds what comes from below and hands one answer up.

    Args:
        clients: how many answer in a round.
        size: bytes of an answer, and of every partial sum, for both are words of the same ring.
    """

    clients: int
    size: float

    @property
    def levels(self) -> tuple[int, ...]:
        """How many coordinators there are on each level, from the leaves to the root."""
        counts = [math.ceil(self.clients / LEAF)]
        while counts[-1] > 1:
            counts.append(math.ceil(counts[-1] / FANOUT))
        return tuple(counts)

    @property
    def seconds(self) -> float:
        """Time to take everybody's answer in: the leaves side by side, then one level after the other, without any overlap."""
        below = (self.clients, *self.levels)
        return sum(math.ceil(lower / upper) * self.size / INGEST for lower, upper in zip(below, self.levels, strict=False))

    @property
    def machine_hours(self) -> float:
        """What all coordinators are busy for in a round, together."""
        return sum((self.clients, *self.levels[:-1])) * self.size / INGEST / 3600

    @property
    def traffic(self) -> float:
        """Bytes that go up."""
        return sum((self.clients, *self.levels[:-1])) * self.size

    @property
    def memory(self) -> float:
        """Bytes of one leaf: a model, a sum, and everybody's stream."""
        return 2 * self.size + min(self.clients, LEAF) * STREAM

    @property
    def step(self) -> float:
        """Smallest difference between two values of an answer: the ring must hold the sum of all of them, up to where it is widened."""
        return 2.0 ** -FixedPoint.for_sum(min(self.clients, RING), BOUND, BITS).exponent


def measure() -> Iterator[Figure]:
    """A round of 10,000 and of 1,000,000 clients with a model of 1 MB."""
    for clients in (10_000, 1_000_000):
        tree = Tree(clients, MODELS["1 MB"])
        yield Figure(f"{clients:,} clients: coordinators", sum(tree.levels), "")
        yield Figure(f"{clients:,} clients: taking in a round, 1 MB", tree.seconds, "s")
        yield Figure(f"{clients:,} clients: machine time of a round", tree.machine_hours, "h")


def table() -> Iterator[str]:
    """The table of docs/scaling.md, line by line."""
    yield "| clients | model | coordinators by level | a round is in after | machine hours | traffic | memory of a leaf | smallest step |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, size in MODELS.items():
        for clients in CLIENTS:
            tree = Tree(clients, size)
            levels = " + ".join(f"{count:,}" for count in tree.levels)
            costs = f"{tree.seconds:,.1f} s | {tree.machine_hours:,.2f} | {tree.traffic / 1e9:,.1f} GB | {tree.memory / 1e6:,.0f} MB"
            yield f"| {clients:,} | {name} | {levels} | {costs} | {tree.step:.2g} |"


if __name__ == "__main__":
    print("\n".join(table()))
