"""Peak memory of a real coordinator with few and with many nodes: little more than one model, and the same for any number of nodes.

The model has 64 MiB; ``FEDSCALE_BENCH_MIB=256 FEDSCALE_BENCH_NODES=2,8 python -m benchmarks memory`` takes a larger one and other crowds.
With ``FEDSCALE_BENCH_LIGHT=spool``, or ``resend`` where the disk does not hold the answers of all nodes, the nodes make what they send as
they send it, and the only round of such a run needs neither memory nor disk but the coordinator's.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, pairwise, repeat
from pathlib import Path

import numpy as np

from benchmarks import Figure, _ingest, _raw
from fedscale.task import Task
from fedscale.update import Layout, Update
from fedscale.wire.codec import sealed
from fedscale.wire.limits import FRAME
from tests.e2e.federation import Federation

MIB, LIGHT = int(os.environ.get("FEDSCALE_BENCH_MIB", "64")), os.environ.get("FEDSCALE_BENCH_LIGHT", "")
COUNTS = [int(count) for count in os.environ.get("FEDSCALE_BENCH_NODES", "4,16").split(",")]
ROUNDS, DEMANDED, MOST = 1 if LIGHT else 2, 5.0 if LIGHT else 10.0, 1.5 * MIB + 256e6 / (1 << 20)
WORDS = FRAME // 4


def measure() -> Iterator[Figure]:
    """Peak resident memory (VmHWM) of the server process over all rounds, each time from a fresh start."""
    peaks = {}
    for nodes in COUNTS:
        peaks[nodes] = peak(nodes)
        yield Figure(f"server, {nodes} nodes, {MIB} MiB model", peaks[nodes], "MiB", MOST)
        yield Figure(f"server, {nodes} nodes, over the model", peaks[nodes] / MIB, "x")
    for few, many in pairwise(COUNTS):
        yield Figure(f"difference from {few} to {many} nodes", 100 * (peaks[many] / peaks[few] - 1), "%", DEMANDED)


def peak(nodes: int) -> float:
    """Of a run with so many nodes, in MiB."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        if LIGHT:
            _raw.keep_answers(federation, LIGHT)
            _raw.play(federation, nodes, MIB << 18, ROUNDS, live=partial(_ingest.node, stock=made, fetching=True))
        else:
            _raw.play(federation, nodes, MIB << 18, ROUNDS)
        status = Path("/proc", str(federation.server.pid), "status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that are never there all together: one frame again and again, and what comes last."""

    frame: bytes
    times: int
    last: bytes

    @classmethod
    def of(cls, frame: bytes, size: int, tail: bytes = b"") -> Content:
        """``size`` bytes of such frames, and a tail."""
        return cls(frame, size // len(frame), frame[: size % len(frame)] + tail)

    def __iter__(self) -> Iterator[bytes]:
        """Its frames as they travel."""
        return chain(repeat(sealed(self.frame), self.times), [sealed(self.last)] if self.last else [])

    def digest(self) -> str:
        """SHA-256 in hex."""
        whole = hashlib.sha256()
        for part in chain(repeat(self.frame, self.times), [self.last]):
            whole.update(part)
        return whole.hexdigest()


def made(task: Task, size: int) -> tuple[Iterable[bytes], str]:
    """What a light node sends."""
    return _content(task.layout, size)


@lru_cache(maxsize=2)
def _content(layout: Layout, size: int) -> tuple[Content, str]:
    """What answers a task of that layout, or makes a first model of ``size`` coordinates, and its digest."""
    content = Content.of(bytes(FRAME), 4 * size)
    if layout.size:
        delta = np.random.default_rng(0).normal(0, 1e-3, WORDS).astype(np.float32)
        words = replace(layout, size=WORDS).encode(Update(delta, 100.0, {"loss": np.ones(1)}))
        content = Content.of(words[:WORDS].tobytes(), 4 * size, words[WORDS:].tobytes())
    return content, content.digest()
