"""Peak memory of a real coordinator with 4 and with 16 nodes and a model of 64 MiB: it must not grow with the nodes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import Figure, _raw
from tests.e2e.federation import Federation

SIZE, ROUNDS = 16 << 20, 2
FEW, MANY = 4, 16
DEMANDED = 10.0


def measure() -> Iterator[Figure]:
    """Peak resident memory (VmHWM) of the server process over two rounds, each time from a fresh start."""
    peaks = {}
    for nodes in (FEW, MANY):
        peaks[nodes] = peak(nodes)
        yield Figure(f"server, {nodes} nodes, 64 MiB model", peaks[nodes], "MiB")
    yield Figure(f"difference from {FEW} to {MANY} nodes", 100 * (peaks[MANY] / peaks[FEW] - 1), "%", DEMANDED)


def peak(nodes: int) -> float:
    """Of a run with so many nodes, in MiB."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        _raw.play(federation, nodes, SIZE, ROUNDS)
        status = Path("/proc", str(federation.server.pid), "status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
