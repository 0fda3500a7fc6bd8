"""A small federation in this process whose every answer has a coordinate of its own, with a server on a disk that may forget."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np

from fedscale.data import Dataset, from_arrays
from fedscale.learner import Learner, Result, Work
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.convert import Key
from fedscale_simulations.chaos.oracle import DENSE, OneHot
from tests.chaos.platter import DATABASE, Remains
from tests.server.running import Ask, Node, Pass, Receipt, Running, plan_text

NAMES = ("ada", "ben")
ROUNDS = 2
PARTS = ("runs", "bundles")
PATIENCE = 240.0
WHOLE = 7200.0  # seconds: runs that are left open while others are played must find their round open
Told: TypeAlias = tuple[str, int, str]


@dataclass(frozen=True)
class Placed:
    """The oracle's learner of one node, in a process that has no data to tell its place by."""

    place: int

    def run(self, work: Work) -> Result:
        data: Dataset = from_arrays(np.full((2, 1), self.place), [0, 1])
        learner: Learner = OneHot(len(NAMES), ROUNDS)
        return learner.run(Work(work.phase, work.number, work.seed, work.arrays, data, work.training))


@dataclass
class Ward:
    """A server, its nodes and their runs.

    Args:
        running: the server.
        passes: what the nodes prove themselves with.
        nodes: those that are connected.
        accepted: run, round and node of every answer that the server has accepted.
        done: tasks that need not be done any more.
        told: hears of every answer that was accepted.
        twice: whether every answer is sent again, and with it some of its predecessors.
        again: what the server has said to those.
        sent: everything that was sent.
    """

    running: Running
    passes: dict[str, Pass]
    nodes: list[Node] = field(default_factory=list)
    accepted: list[Told] = field(default_factory=list)
    done: set[tuple[str, Key]] = field(default_factory=set)
    told: Callable[[Told], None] = lambda _: None
    twice: bool = False
    again: set[int] = field(default_factory=set)
    sent: list[tuple[Key, bytes, str]] = field(default_factory=list)

    @classmethod
    async def open(cls, folder: Path, database: Path) -> Ward:
        """A new server, and nodes that have joined."""
        running = await Running.start(folder, database)
        return cls(running, {name: (await running.node(name, connect=False)).credentials for name in NAMES})

    @classmethod
    async def reopen(cls, folder: Path, remains: Remains, former: Ward) -> Ward:
        """The server that is started on what a power cut has left, at ports of its own: the former one may still be there."""
        settings = former.running.settings.model_copy(update={"port": 0, "enrolment_port": 0, "web_port": 0})
        shutil.copytree(former.running.path, folder, ignore=shutil.ignore_patterns(*PARTS, f"{DATABASE}*"))
        remains.lay_out(folder)
        return cls(await Running._serve(folder, settings), former.passes)

    async def submit(self, key: str) -> str:
        """A run in which everybody must be counted."""
        clients = {"min_per_round": len(NAMES), "rejoin": WHOLE, "deadline": WHOLE}
        plan = plan_text(rounds=ROUNDS, strategy={"weighting": "equal"}, clients=clients)
        try:
            return await self.running.submit(plan, key=key)
        except grpc.aio.AioRpcError:
            return await self.running.submit(plan, key=key)

    async def connect(self) -> None:
        """Have every node connected."""
        if not self.nodes:
            channels = [self.passes[name].channel(self.running.ready.address) for name in NAMES]
            self.nodes = [Node(name, self.passes[name], channel) for name, channel in zip(NAMES, channels, strict=True)]
            self.running.people += self.nodes
            for node in self.nodes:
                await node.connect()

    async def play(self, run: str, until: Callable[[], bool] = lambda: False) -> None:
        """Let every node, one after the other, do what it is asked, until a run is over or something is so."""
        await self.connect()
        async with asyncio.timeout(PATIENCE):
            while not until() and not await self.over(run):
                for node in self.nodes:
                    waiting = [ask for ask in node.asks if ask.run == run and (node.name, ask.key) not in self.done]
                    if waiting and not until() and await self._answer(node, waiting[0]):
                        self.done.add((node.name, waiting[0].key))

    async def _answer(self, node: Node, ask: Ask) -> bool:
        """Do a task; ``False`` when the server could not take the answer, so that it is sent again."""
        try:
            body, schema = await node.compute(ask, Placed(NAMES.index(node.name)))
            receipt = await node.submit(ask.key, body, schema=schema)
        except grpc.aio.AioRpcError as error:
            # A model that is not there any more belongs to a round that is over.
            return error.code() is grpc.StatusCode.NOT_FOUND
        if receipt.verdict == Receipt.ACCEPTED:
            self.accepted.append((ask.run, ask.key[2], node.name))
            self.told(self.accepted[-1])
        if self.twice:
            self.again |= {(await node.submit(key, late, schema=text)).verdict for key, late, text in (*self.sent[-2:], (ask.key, body, schema))}
            self.sent.append((ask.key, body, schema))
        return True

    async def detail(self, run: str) -> Any:
        return (await self.running.detail(run))[0]

    async def knows(self, run: str) -> bool:
        """Whether the server has heard of a run."""
        return run in [info.run for info in (await self.running.admin.control.ListRuns(pb.ListRunsRequest())).runs]

    async def over(self, run: str) -> bool:
        with suppress(grpc.aio.AioRpcError):
            return bool((await self.detail(run)).info.finished)
        return False

    async def verdict(self, run: str) -> tuple[str, str, list[float]]:
        """How a run ended, why, and how often each answer is in its model."""
        detail = await self.detail(run)
        try:
            model = np.frombuffer(await self.running.admin.fetch(detail.model), "<f4")
        except grpc.aio.AioRpcError:
            return detail.info.status, detail.info.reason, []
        return detail.info.status, detail.info.reason, (model[:-DENSE] * len(NAMES)).tolist()

    async def answered(self, run: str) -> list[list[str]]:
        """Who is in each round, as the record has it."""
        return [row["answered"] for row in json.loads((await self.detail(run)).record)["rounds"]]

    async def close(self) -> None:
        await self.running.close()


ONCE = ("completed", "", [1.0] * ROUNDS * len(NAMES))
