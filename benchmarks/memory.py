"""Peak memory of a real coordinator with few and with many nodes: little more than one model, and the same for any number of nodes.

The model has 64 MiB; ``FEDSCALE_BENCH_MIB=256 FEDSCALE_BENCH_NODES=2,8 python -m benchmarks memory`` takes a larger one and other crowds.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import Figure, _raw
from tests.e2e.federation import Federation

MIB, ROUNDS = int(os.environ.get("FEDSCALE_BENCH_MIB", "64")), 2
FEW, MANY = (int(count) for count in os.environ.get("FEDSCALE_BENCH_NODES", "4,16").split(","))
DEMANDED, MOST = 10.0, 1.5 * MIB + 256e6 / (1 << 20)


def measure() -> Iterator[Figure]:
    """Peak resident memory (VmHWM) of the server process over two rounds, each time from a fresh start."""
    peaks = {}
    for nodes in (FEW, MANY):
        peaks[nodes] = peak(nodes)
        yield Figure(f"server, {nodes} nodes, {MIB} MiB model", peaks[nodes], "MiB", MOST)
    yield Figure(f"difference from {FEW} to {MANY} nodes", 100 * (peaks[MANY] / peaks[FEW] - 1), "%", DEMANDED)


def peak(nodes: int) -> float:
    """Of a run with so many nodes, in MiB."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        _raw.play(federation, nodes, MIB << 18, ROUNDS)
        status = Path("/proc", str(federation.server.pid), "status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
