"""A round of eight nodes that train nothing, with secure aggregation and without, over mutual TLS, all on this machine.

The model has 100 MB, or four bytes for each of `FEDSCALE_BENCH_COORDINATES`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import Figure, _raw
from tests.e2e.federation import Federation

NODES, ROUNDS = 8, 4
SIZE = int(os.environ.get("FEDSCALE_BENCH_COORDINATES", "25_000_000"))


def measure() -> Iterator[Figure]:
    """Median time of a round from its opening to the next one's, each way, and what secure aggregation adds."""
    times = {masked: _seconds(masked=masked) for masked in (False, True)}
    yield Figure(f"a round, {NODES} nodes, {4 * SIZE / 1e6:g} MB model", times[False], "s")
    yield Figure("the same with secure aggregation", times[True], "s")
    yield Figure("ratio", times[True] / times[False], "x")


def _seconds(*, masked: bool) -> float:
    """The median round of a run."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        events = _raw.play(federation, NODES, SIZE, ROUNDS, masked=masked)
    opened = [event["at"] for event in events if event["kind"] == "opened"]
    times: list[float] = [end - begin for begin, end in pairwise(opened)]
    assert len(times) == ROUNDS - 1
    return median(times)
