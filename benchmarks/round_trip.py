"""A round with a model of 128 MiB and two nodes that train nothing: fetch, upload, check, add, store, over mutual TLS."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import Figure, _raw
from tests.e2e.federation import Federation

NODES, SIZE, ROUNDS = 2, 32 << 20, 4


def measure() -> Iterator[Figure]:
    """Median time of a round from its opening to the next one's, and what passes through the server in that time."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        events = _raw.play(federation, NODES, SIZE, ROUNDS)
    opened = [event["at"] for event in events if event["kind"] == "opened"]
    times = [end - begin for begin, end in pairwise(opened)]
    assert len(times) == ROUNDS - 1
    yield Figure(f"a round, {NODES} nodes, 128 MiB model", median(times), "s")
    yield Figure("both directions together", 2 * NODES * 4 * SIZE / median(times) / 1e6, "MB/s")
