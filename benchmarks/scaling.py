"""What an aggregation tree would cost, computed from what one coordinator was measured at; docs/scaling.md explains the model.

``python -m benchmarks.scaling`` prints the table of that page, ``python -m benchmarks.scaling docs`` draws its plots into that
folder, ``python -m benchmarks scaling`` gives its figures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Figure
from fedscale.report.svg import Line, line_chart
from fedscale.ring import FixedPoint

# Measured on the reference machine (docs/scorecard.md): see there for the commands.
INGEST, STREAM, CONNECTING, BASE = 122e6, 143 * 1024.0, 89.0, 154e6
FANOUT, LEAF = 50, 1_000
BOUND, BITS, RING = 8.0, 30, 1 << 18  # the most answers within this bound that a sum of 32 bit words can hold
CLIENTS = (100, 1_000, 10_000, 100_000, 1_000_000)
MODELS = {"1 MB": 1e6, "128 MiB": 128 * 2.0**20}
WIDTHS = {1_000: "", 100: "d1"}  # clients of a leaf in the plots, and how their curves are dashed
STYLE = """text { font: 12px sans-serif; fill: #555 } .end { text-anchor: end } .middle { text-anchor: middle } .grid { stroke: #ddd }
.axis { stroke: #888 } .curve { fill: none; stroke: #1f5fa8; stroke-width: 2 } .d1 .curve { stroke-dasharray: 7 3 } circle { fill: #1f5fa8 }
.halo { fill: none } svg { background: #fff }"""


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of coordinators in which each adds what comes from below and hands one answer up.

    Args:
        clients: how many answer in a round.
        size: bytes of an answer, and of every partial sum, for both are words of the same ring.
        leaf: most clients of one coordinator at the bottom.
    """

    clients: int
    size: float
    leaf: int = LEAF

    @property
    def levels(self) -> tuple[int, ...]:
        """How many coordinators there are on each level, from the leaves to the root."""
        counts = [math.ceil(self.clients / self.leaf)]
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
        """Bytes of one leaf: itself, a sum, and everybody's stream; the model stays on disk."""
        return BASE + self.size + min(self.clients, self.leaf) * STREAM

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


def plots() -> Iterator[tuple[str, str]]:
    """Name and content of each plot: SVG that stands for itself, over the number of clients as a power of ten."""
    kinds: dict[str, tuple[str, Callable[[Tree], float]]] = {
        "time": ("seconds until a round with a model of 128 MiB is in", lambda tree: tree.seconds),
        "machines": ("coordinators of all levels, as a power of ten", lambda tree: math.log10(sum(tree.levels))),
    }
    for name, (label, value) in kinds.items():
        curves = [
            Line(f"leaves of {leaf:,}", tuple((math.log10(n), value(Tree(n, MODELS["128 MiB"], leaf))) for n in CLIENTS), style, labelled=True)
            for leaf, style in WIDTHS.items()
        ]
        chart = str(line_chart(curves, label, from_zero=True, over="clients, as a power of ten"))
        head, body = chart.split(">", 1)
        yield f"scaling-{name}.svg", f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{body}\n'


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        for file, content in plots():
            Path(folder, file).write_text(content, encoding="utf-8")
    print("\n".join(table()))
