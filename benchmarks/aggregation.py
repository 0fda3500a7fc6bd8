"""One round's answers through the ring: encode at the node, check and add at the server, report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import Figure, seconds
from fedscale.aggregate import Mean
from fedscale.update import Layout, Update

COORDINATES = 5_000_000


def measure() -> Iterator[Figure]:
    """Throughput in GB/s of float32 model for a model of 5 million coordinates, and how far the mean is off."""
    delta = np.random.default_rng(0).normal(0, 0.01, COORDINATES).astype(np.float32)
    layout = Layout(COORDINATES, (), terms=64, bound=8.0, weight_cap=16384.0)
    update, mean = Update(delta, weight=100.0), Mean()
    words = layout.encode(update)
    partial = mean.zero(layout)
    mean.add(partial, words)
    running = mean.zero(layout)
    steps = {
        "encode": lambda: layout.encode(update),
        "check": lambda: layout.check(words),
        "add": lambda: mean.add(running, words),
        "report": lambda: mean.report(partial, layout),
    }
    for name, step in steps.items():
        yield Figure(name, delta.nbytes / seconds(step) / 1e9, "GB/s")
    once = mean.zero(layout)
    mean.add(once, words)
    error = np.abs(mean.report(once, layout).delta - delta).max()
    yield Figure("largest error of the mean", float(error), "")
