"""The server dies, at any moment and at every point where it stores something; nothing accepted is lost or counted twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from fedscale.identity import Identity, Role, certificate_pem, key_pem, new_key, new_request
from fedscale.learner import Phase, Result, Work
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale.wire.convert import Key
from fedscale_server.home import Home
from fedscale_server.registry import Registry
from fedscale_server.settings import Settings
from fedscale_server.store.store import Store
from tests.server import mortal
from tests.server.ports import own_port
from tests.server.running import BUNDLE, PATIENCE, Node, Pass, Person, Receipt, plan_text, refusal, soon, until
from tests.server.samples import later

NAMES = ("ada", "ben", "cyd", "dee")
DENSE, LONG = 5, 600.0
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(LONG)


@dataclass
class OneHot:
    """A learner whose every answer has a coordinate of its own: in the end a 0 was lost, a double counted twice. The last coordinates are dense."""

    name: str
    rounds: int

    def run(self, work: Work) -> Result:
        if work.phase is Phase.INIT or work.arrays is None:
            return Result({"w": np.zeros(len(NAMES) * self.rounds + DENSE, np.float32)}, 0)
        change = np.zeros(len(NAMES) * self.rounds + DENSE, np.float32)
        change[(work.number - 1) * len(NAMES) + NAMES.index(self.name)] = 1.0
        change[-DENSE:] = np.random.default_rng(work.seed).normal(size=DENSE).astype(np.float32)
        return Result({"w": work.arrays["w"] + change}, 10, {"loss": np.array([work.number * 1.5])})


@dataclass
class Tireless:
    """A node that keeps each answer until the server has said what became of it, and comes back whenever the stream breaks."""

    node: Node
    rounds: int
    kept: dict[Key, tuple[bytes, str]] = field(default_factory=dict)
    verdicts: Counter[int] = field(default_factory=Counter)

    async def live(self, world: World) -> None:
        while True:
            await until(lambda: world.address)
            self.node.channel = self.node.credentials.channel(world.address)
            with suppress(grpc.aio.AioRpcError, TimeoutError):
                await self.node.connect(heartbeat=0.2)
                while self.node.connected:
                    await self._turn()
            await self.node.leave()
            await self.node.channel.close()
            await asyncio.sleep(0.02)

    async def _turn(self) -> None:
        """Deliver what is kept, then do what is asked; a task whose model is gone is not wanted any more."""
        for key, (body, schema) in list(self.kept.items()):
            receipt = await asyncio.wait_for(self.node.submit(key, body, schema=schema), PATIENCE)
            self.verdicts[receipt.verdict] += 1
            del self.kept[key]
        for ask in self.node.asks[self.node.taken :]:
            try:
                self.kept[ask.key] = await asyncio.wait_for(self.node.compute(ask, OneHot(self.node.name, self.rounds)), PATIENCE)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
            self.node.taken += 1
        await asyncio.sleep(0.002)


class World:
    """A home, a process that makes servers, nodes that never give up and an operator who never does either."""

    def __init__(self, path: Path, process: asyncio.subprocess.Process, database: str) -> None:
        self.path, self._process, self._database = path, process, database
        self.address, self._ports = "", {"port": own_port(), "enrolment_port": own_port()}
        self.server = 0
        self.nodes: list[Tireless] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        """Leave no process behind."""
        if self.server:
            os.kill(self.server, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await soon(self._process.wait())

    async def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        facts: dict[str, Any] = json.loads(await soon(self._process.stdout.readline(), LONG))
        self.server = 0 if "ended" in facts else facts.get("pid", self.server)
        return facts

    async def start(self, *crash: Any) -> int:
        """A server's life begins; its process, or 0 if it died before it was ready."""
        order: dict[str, Any] = {"home": str(self.path), "crash": crash, "database": self._database, **self._ports}
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(order)}\n".encode())
        pid = 0
        while True:
            told = await self._told()
            pid = told.get("pid", pid)
            if "ready" in told:
                self.address = told["ready"]
                self._ports = {"port": int(self.address.rpartition(":")[2]), "enrolment_port": int(told["enrolment"].rpartition(":")[2])}
                return pid or int((await self._told())["pid"])
            if "ended" in told:
                assert told["ended"] == mortal.CRASHED
                return 0

    async def ended(self) -> tuple[int, dict[str, Any]]:
        """The server's exit code and its last words."""
        words: dict[str, Any] = {}
        while "ended" not in (told := await self._told()):
            words |= told
        return told["ended"], words

    def populate(self, rounds: int) -> None:
        """Nodes that have joined long ago."""
        home = Home.load(self.path)
        store = Store.open(self._database or f"sqlite:///{self.path / 'server.db'}")
        Registry(store, home.authority, _Now())
        store.create_project("ward", datetime.now(UTC))
        for name in NAMES:
            key = new_key()
            who = Identity("fedscale", Role.NODE, name)
            certificate = home.authority.issue(new_request(key, name), who, datetime.now(UTC), 24)
            store.enrol(name, "ward", Role.NODE, "5e", later(86_400), certificate.not_valid_before_utc)
            credentials = Pass(key_pem(key), certificate_pem(certificate), certificate_pem(home.authority.certificate))
            self.nodes.append(Tireless(Node(name, credentials, grpc.aio.insecure_channel("localhost:1")), rounds))
        store.close()
        self.tasks = [asyncio.create_task(node.live(self)) for node in self.nodes]

    @property
    def _credentials(self) -> Pass:
        return Pass(*((self.path / "admin" / f"{name}.pem").read_bytes() for name in ("key", "cert", "ca")))

    async def call(self, method: str, request: Any) -> Any:
        """A call of the operator, made again until it is answered."""
        await until(lambda: self.address)
        async with asyncio.timeout(LONG):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    async with self._credentials.channel(self.address) as channel:
                        person = Person("admin", self._credentials, channel)
                        if method == "put":
                            return await person.put(request)
                        if method == "fetch":
                            return await person.fetch(request)
                        if method == "WatchRun":
                            return [event async for event in person.control.WatchRun(request)]
                        if method == "GetRun":
                            return await anext(aiter(person.control.GetRun(request, timeout=PATIENCE)))
                        return await getattr(person.control, method)(request, timeout=PATIENCE)
                await asyncio.sleep(0.02)

    async def submit(self, rounds: int, key: str) -> str:
        await self.call("put", BUNDLE)
        clients = {"min_per_round": len(NAMES), "rejoin": LONG, "deadline": LONG}
        plan = plan_text(rounds=rounds, strategy={"weighting": "equal"}, clients=clients)
        request = pb.SubmitRunRequest(project="ward", plan=plan, bundle=digest_of(BUNDLE), key=key)
        return str((await self.call("SubmitRun", request)).run)

    async def finished(self, run: str) -> Any:
        """Wait until the run is over."""
        async with asyncio.timeout(LONG):
            while True:
                detail = await self.call("GetRun", pb.GetRunRequest(run=run))
                if detail.info.finished:
                    return detail
                await asyncio.sleep(0.02)

    async def check(self, run: str, rounds: int) -> bytes:
        """The oracle: each answer counted exactly once, and told so without a gap. The model's bytes."""
        detail = await self.finished(run)
        assert (detail.info.status, detail.info.reason) == ("completed", "")
        model: bytes = await self.call("fetch", detail.model)
        assert np.frombuffer(model, "<f4")[:-DENSE].tolist() == [1 / len(NAMES)] * (rounds * len(NAMES))
        record = json.loads(detail.record)
        assert [(r["number"], r["answered"]) for r in record["rounds"]] == [(n, list(NAMES)) for n in range(1, rounds + 1)]
        assert record["nodes"] == list(NAMES)
        events = await self.call("WatchRun", pb.WatchRunRequest(run=run))
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))
        told = Counter((e.kind, e.number) for e in events)
        assert all(told[kind, n] == 1 for n in range(1, rounds + 1) for kind in ("opened", "closed"))
        assert all(told["answered", n] == len(NAMES) for n in range(1, rounds + 1))
        assert events[-1].kind == "finished"
        return model


class _Now:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
async def world(url: str, tmp_path: Path) -> AsyncIterator[World]:
    """No server yet, four nodes that look for one."""
    home = tmp_path / "home"
    Home.create(home, Settings(port=0, enrolment_port=0), datetime.now(UTC))
    with (tmp_path / "log").open("wb") as log:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, mortal.__file__, stdin=pipe, stdout=pipe, stderr=log, cwd=ROOT)
    world = World(home, process, url)
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    for tireless in world.nodes:
        await tireless.node.leave()
        await tireless.node.channel.close()
    await world.close()


class Customer:
    """Somebody who always has a run under way, and asks again with the same key when the server dies."""

    def __init__(self, world: World, rounds: int) -> None:
        self._world, self._rounds = world, rounds
        self.runs: list[str] = []
        self.open = True

    async def shop(self) -> None:
        """Run after run until closing time; the last one begins after it."""
        last = False
        while not last:
            last = not self.open
            self.runs.append(await self._world.submit(self._rounds, f"key-{len(self.runs)}"))
            await self._world.finished(self.runs[-1])

    async def check(self) -> None:
        """All runs were begun once, and all models have the same bits as that of the last run, whose server lived."""
        listed = await self._world.call("ListRuns", pb.ListRunsRequest())
        assert sorted(info.run for info in listed.runs) == sorted(self.runs)
        models = [await self._world.check(run, self._rounds) for run in self.runs]
        assert set(models) == {models[-1]}


def crashes() -> list[tuple[str, str, int]]:
    """Every point where something is stored, before and after, at its first call in a life and at later ones."""
    counts = {"append": (1, 2, 4, 7), "keep": (1, 3), "store": (2,), "checkpoint": (1, 2), "clear": (1,), "retire": (1,)}
    counts |= {"adopt": (1,), "finish": (1,), "create": (1,)}
    return [(point, when, count) for point, several in counts.items() for count in several for when in ("before", "after")]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_a_server_that_dies_wherever_it_stores_something_loses_and_doubles_nothing(world: World) -> None:
    world.populate(rounds=3)
    customer = Customer(world, 3)
    shopping = asyncio.create_task(customer.shop())
    for crash in crashes():
        if await world.start(*crash):
            assert (await world.ended())[0] == mortal.CRASHED
    await world.start()
    customer.open = False
    await soon(shopping, LONG)
    await customer.check()


async def test_a_server_killed_at_random_moments_loses_and_doubles_nothing(world: World) -> None:
    world.populate(rounds=12)
    moments = random.Random()
    pid = await world.start()
    customer = Customer(world, 12)
    shopping = asyncio.create_task(customer.shop())
    for _ in range(12):
        await asyncio.sleep(moments.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert (await world.ended())[0] == -signal.SIGKILL
        pid = await world.start()
    customer.open = False
    await soon(shopping, LONG)
    await customer.check()
    accepted = sum(tireless.verdicts[Receipt.ACCEPTED] for tireless in world.nodes)
    assert accepted <= len(customer.runs) * (12 * len(NAMES) + 1)
    assert all(set(t.verdicts) <= {Receipt.ACCEPTED, Receipt.DUPLICATE, Receipt.CLOSED} for t in world.nodes)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_a_server_that_is_told_to_stop_lets_everybody_go_and_loses_nothing(world: World, tmp_path: Path) -> None:
    world.populate(rounds=2)
    pid = await world.start()
    hold = asyncio.Event()
    slow = world.nodes[0]
    turn = slow._turn

    async def held() -> None:
        await (turn() if hold.is_set() or not slow.node.asks or slow.node.asks[-1].task.phase is Phase.INIT else asyncio.sleep(0.01))

    slow._turn = held  # type: ignore[method-assign]
    run = await world.submit(2, "key")
    async with world._credentials.channel(world.address) as channel:
        call = Person("admin", world._credentials, channel).control.WatchRun(pb.WatchRunRequest(run=run))
        seen: list[pb.RunEvent] = []
        error = await refusal(_watched(call, seen, pid))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            f"run {run}: the server goes down; watch again from the last event on",
        )
    code, words = await world.ended()
    assert code == 0
    # What a server must never load, and what it has no use for.
    assert {m.partition(".")[0] for m in words["modules"]} & {"torch", "flwr", "sklearn", "pandas", "opacus", "fedscale_client", "app"} == set()
    await world.start()
    hold.set()
    await world.check(run, 2)
    after = await world.call("WatchRun", pb.WatchRunRequest(run=run, after=max(e.sequence for e in seen)))
    assert [e.sequence for e in seen if e.sequence] + [e.sequence for e in after] == list(range(1, after[-1].sequence + 1))
    # The nodes were sent away, they did not leave; whoever is slow to come back is lost for the second server only.
    assert not [e for e in seen if e.kind == "lost"]
    lines = (tmp_path / "log").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert {"server ready", "node connected", "node disconnected"} <= {e["event"] for e in events}
    assert {tuple(sorted(e)) for e in events} <= {
        ("address", "dashboard", "enrolment", "event", "level", "timestamp"),
        ("datasets", "event", "level", "node", "timestamp"),
        ("event", "level", "node", "timestamp"),
        ("action", "door", "event", "head", "level", "target", "timestamp", "who"),
        ("event", "level", "timestamp", "wanted"),  # the dashboard's port, which another server has
    }


async def _watched(call: Any, seen: list[pb.RunEvent], server: int) -> None:
    """Watch until three have answered, tell the server to stop, and watch on."""
    async for event in call:
        seen.append(event)
        if event.kind == "answered" and sum(e.kind == "answered" for e in seen) == 3:
            os.kill(server, signal.SIGTERM)
