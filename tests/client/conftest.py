"""A coordinator that the tests script, and nodes that run against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from fedscale.clock import Clock, SystemClock
from fedscale_client import declarations
from fedscale_client.cache import Part
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome
from fedscale_client.node import Node
from tests.client.coordinator import PATIENCE, Coordinator

ROWS = 40

LEARNER = """
import numpy as np
from fedscale.learner import Phase, Result

class Drift:
    def run(self, work):
        if work.phase is Phase.INIT:
            return Result({"w": np.zeros(3, np.float32), "b": np.ones(1, np.float32)}, len(work.data))
        sums = {name: np.full(1, float(len(work.data))) for name in work.metrics}
        arrays = {name: value + np.float32(0.5) for name, value in work.arrays.items()} if work.phase is Phase.TRAIN else None
        return Result(arrays, len(work.data), sums or {"loss": np.full(1, float(len(work.data)))})

app = Drift()
"""


def learner(body: str, head: str = "") -> str:
    """A module whose learner runs ``body`` before it answers."""
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    return f"{head}\n{LEARNER}".replace("    def run(self, work):\n", f"    def run(self, work):\n{indented}\n")


def write_csv(path: Path, rows: int = ROWS) -> Path:
    """A small table with columns a, b and y."""
    lines = [f"{i % 7}.5,{i % 3},{i % 2}" for i in range(rows)]
    path.write_text("\n".join(["a,b,y", *lines]) + "\n")
    return path


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    async with Coordinator() as running:
        yield running


@pytest.fixture
def home(coordinator: Coordinator, tmp_path: Path) -> NodeHome:
    """A home that has joined and offers the dataset ``heart``."""
    made = coordinator.home(tmp_path / "node")
    declarations.add(made, "heart", Declaration(kind="csv", path=str(write_csv(tmp_path / "heart.csv")), label="y"))
    return made


@contextmanager
def full_disk(part: Part) -> Iterator[Part]:
    """A part whose file system has no space left."""
    part.close()
    with Path("/dev/full").open("wb", buffering=0) as part._file, closing(part):
        yield part


class Running:
    """A node at work and what it has told."""

    def __init__(self, home: NodeHome, clock: Clock) -> None:
        self.told: list[dict[str, Any]] = []
        self.node = Node(home, lambda event: self.told.append(dict(event)), clock)
        self.task = asyncio.create_task(self.node.run())

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.told if event["event"] == kind]

    async def stop(self) -> None:
        self.node.stop()
        await self.task


Start: TypeAlias = Callable[..., Any]


@pytest.fixture
def start(home: NodeHome) -> Start:
    """Starts a node; use as ``async with start() as node``."""

    @asynccontextmanager
    async def begin(at: NodeHome = home, clock: Clock | None = None) -> AsyncIterator[Running]:
        running = Running(at, clock or SystemClock())
        try:
            yield running
        finally:
            running.node.stop()
            with suppress(ExceptionGroup):
                await asyncio.wait_for(running.task, 2 * PATIENCE)

    return begin
