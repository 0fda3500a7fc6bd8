"""What ten people who watch cost a run: rounds through a coordinator, without and with ten open pages of the run.

Runs without and with them take turns, so that whatever else the machine does meets both alike. Who watches does so from a
process of its own on the same machine: what that takes of the processors is in the figure.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import Figure, _raw
from fedscale_client.home import NodeHome
from tests.e2e.federation import Federation

TABS, PAIRS, NODES, SIZE, ROUNDS = 10, 6, 2, 32 << 20, 3
PATIENCE = 600.0
MOST_PERCENT = 5.0


def measure() -> Iterator[Figure]:
    """Seconds of the median round of each run, and what the pages add to it, pair by pair; the first pair warms up and is not counted."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        homes = _raw.join(federation, NODES)
        pairs = [(_round(federation, homes, f"alone-{at}", 0), _round(federation, homes, f"watched-{at}", TABS)) for at in range(PAIRS + 1)][1:]
    more = sorted(100 * (watched / alone - 1) for alone, watched in pairs)
    yield Figure(f"a round of {NODES} nodes, {4 * SIZE >> 20} MiB model", median(alone for alone, _ in pairs), "s")
    yield Figure(f"the same with {TABS} open pages", median(watched for _, watched in pairs), "s")
    yield Figure(f"more with {TABS} pages, median of {PAIRS} pairs", median(more), "%", MOST_PERCENT)
    yield Figure("more, the least of the pairs", more[0], "%")
    yield Figure("more, the most of the pairs", more[-1], "%")


def _round(federation: Federation, homes: list[NodeHome], name: str, tabs: int) -> float:
    """Seconds of the median round of a run with so many pages open."""
    run = federation.submit(_raw.write_job(federation.folder / name, SIZE, ROUNDS, NODES))
    with _open(federation.home, run, tabs):
        watching = federation.watch(run)
        asyncio.run(_raw.take_part(homes, SIZE, watching))
        assert watching.wait(PATIENCE).code == 0
    opened = [event["at"] for event in watching.events() if event["kind"] == "opened"]
    return float(median(end - begin for begin, end in pairwise(opened)))


@contextmanager
def _open(home: Path, run: str, tabs: int) -> Iterator[None]:
    """So many pages of a run, open from before it begins."""
    if not tabs:
        yield
        return
    words = [sys.executable, "-m", "benchmarks._tabs", str(home), run, str(tabs)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield
        finally:
            assert process.poll() is None, "the pages stayed open to the end"
            process.terminate()
