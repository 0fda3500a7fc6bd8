"""A real server in this process, raw nodes that do exactly what a test says, and people of every role; all over mTLS on loopback."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from unittest.mock import patch

import grpc
import grpc.aio
import numpy as np

from fedscale.errors import Cause, Failure
from fedscale.identity import Role, Ticket, key_pem, new_key, new_request
from fedscale.learner import Phase, Result, Work
from fedscale.plan import Plan
from fedscale.proto.v1 import bulk_pb2, control_pb2_grpc, node_pb2, node_pb2_grpc
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.ring import Words
from fedscale.task import FirstModel, Task, perform
from fedscale.update import Update
from fedscale.vector import Schema, Vector
from fedscale.wire.codec import DIGEST_KEY, FETCH, PUT, SCHEMA_KEY, SIZE_KEY, SUBMIT, TASK_KEY, digest_of, frames, sealed, unsealed
from fedscale.wire.convert import Key, assignment_from_proto, failure_to_proto, key_text
from fedscale.wire.limits import CHANNEL_OPTIONS
from fedscale_server.app import Ready, serve
from fedscale_server.driver import Driver
from fedscale_server.engine import Engine
from fedscale_server.home import Home
from fedscale_server.settings import Settings
from tests.server.ports import own_port

PATIENCE = 60.0
BUNDLE = b"a bundle that only nodes would look into"
SCHEMA = Schema.of({"w": np.zeros(4, np.float32)})
OPTIONS = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
Receipt = bulk_pb2.Receipt
T = TypeVar("T")


async def until(condition: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """Wait until something is so, and return it."""
    async with asyncio.timeout(patience):
        while not (value := condition()):
            await asyncio.sleep(0.005)
    return value


async def soon(awaitable: Awaitable[T], patience: float = PATIENCE) -> T:
    """A result that must not take for ever."""
    async with asyncio.timeout(patience):
        return await awaitable


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        await soon(call)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call was allowed")


def none_left(*_: Any) -> NoReturn:
    """In the place of what opens a file: the process has no descriptors left."""
    raise OSError(errno.EMFILE, "Too many open files")


def plan_text(*, name: str = "trial", rounds: int = 1, every: int = 0, seed: int = 3, data: str = "default", **tables: Any) -> str:
    """A plan with these tables, evaluating never unless asked to."""
    strategy = {"rounds": rounds, **tables.pop("strategy", {})}
    evaluate = {"every": every, "min_cell": 1, **tables.pop("evaluate", {})}
    job = {"name": name, "seed": seed, "data": data}
    return Plan.model_validate({"job": job, "strategy": strategy, "evaluate": evaluate, **tables}).to_toml()


@dataclass(frozen=True)
class Pass:
    """What a member proves itself with."""

    key: bytes
    certificate: bytes
    authority: bytes

    def channel(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self.authority, self.key, self.certificate), options=OPTIONS)


@dataclass
class Person:
    """Somebody with a certificate and a channel of their own."""

    name: str
    credentials: Pass
    channel: grpc.aio.Channel

    @property
    def control(self) -> control_pb2_grpc.ControlAsyncStub:
        return control_pb2_grpc.ControlStub(self.channel)

    async def fetch(self, digest: str, offset: int = 0) -> bytes:
        fetch: Any = self.channel.unary_stream(FETCH, bulk_pb2.FetchRequest.SerializeToString, unsealed)
        return b"".join([frame async for frame in fetch(bulk_pb2.FetchRequest(digest=digest, offset=offset))])

    async def put(self, data: bytes, digest: str | None = None, size: str | None = None) -> Any:
        return await self.send(PUT, frames(data), [(DIGEST_KEY, digest or digest_of(data)), (SIZE_KEY, size or str(len(data)))])

    async def send(self, method: str, parts: Iterable[bytes] | AsyncIterator[bytes], metadata: list[tuple[str, str | bytes]]) -> Any:
        """Raw frames to Submit or Put."""

        async def each() -> AsyncIterator[bytes]:
            if isinstance(parts, AsyncIterator):
                async for part in parts:
                    yield part
            else:
                for part in parts:
                    yield part

        call: Any = self.channel.stream_unary(method, sealed, Receipt.FromString)
        return await call(each(), metadata=metadata)


@dataclass
class Ask:
    """An assignment as a node got it."""

    run: str
    plan: Plan
    task: Task

    @property
    def key(self) -> Key:
        return self.run, self.task.phase, self.task.number

    def words(self, delta: float | Vector = 0.0, weight: float = 10.0, loss: float = 1.0) -> Words:
        """A sound answer unless its numbers are not."""
        layout = self.task.layout
        change = np.full(layout.size, delta, np.float32) if isinstance(delta, float) else delta
        return layout.encode(Update(change, weight, {m.name: np.full(m.width, loss) for m in layout.metrics}))


@dataclass
class Node(Person):
    """A node without a mind of its own: it connects, hears and says what the test wants."""

    project: str = "ward"
    heard: list[node_pb2.ServerMessage] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    released: list[tuple[str, str, int]] = field(default_factory=list)
    taken: int = 0
    mute: bool = False
    ended: grpc.aio.AioRpcError | None = None
    _outbox: asyncio.Queue[node_pb2.NodeMessage | None] | None = None
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def connect(
        self, datasets: Iterable[str] = ("default",), *, heartbeat: float = 0.5, runs: Iterable[str] = (), proposals: bool = False
    ) -> Node:
        """Open the control stream, greet and wait to be greeted."""
        self._outbox, self.ended, greeted = asyncio.Queue(), None, len(self.heard)
        self.say(node_pb2.NodeMessage(hello=node_pb2.Hello(version="9", datasets=datasets, runs=runs, proposals=proposals)))
        call = node_pb2_grpc.NodeStub(self.channel).Connect(self._spoken(self._outbox, heartbeat))
        self._tasks = [asyncio.create_task(self._listen(call))]
        await until(lambda: len(self.heard) > greeted or self.ended)
        if self.ended:
            raise self.ended
        return self

    def say(self, message: node_pb2.NodeMessage) -> None:
        assert self._outbox is not None
        self._outbox.put_nowait(message)

    async def _spoken(self, outbox: asyncio.Queue[node_pb2.NodeMessage | None], heartbeat: float) -> AsyncIterator[node_pb2.NodeMessage]:
        while True:
            try:
                message = await asyncio.wait_for(outbox.get(), heartbeat)
            except TimeoutError:
                if self.mute:
                    continue
                message = node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat())
            if message is None:
                return
            yield message

    async def _listen(self, call: Any) -> None:
        try:
            async for message in call:
                self.heard.append(message)
                kind = message.WhichOneof("message")
                if kind == "assignment":
                    self.asks.append(Ask(*assignment_from_proto(message.assignment, self.name)))
                elif kind == "release":
                    self.released.append((message.release.key.run, message.release.key.phase, message.release.key.number))
        except grpc.aio.AioRpcError as error:
            self.ended = error
        finally:
            call.cancel()
            self._outbox = None

    @property
    def connected(self) -> bool:
        return self._outbox is not None

    async def leave(self) -> None:
        """Break the stream, as a node that dies does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._outbox = None

    async def ask(self, phase: str | None = None) -> Ask:
        """The next assignment that was not taken yet."""
        while True:
            await until(lambda: len(self.asks) > self.taken)
            self.taken += 1
            ask = self.asks[self.taken - 1]
            if phase in (None, ask.task.phase):
                return ask

    async def submit(
        self, key: Key | str, body: bytes, *, digest: str | None = None, size: str | None = None, schema: str | bytes = "", parts: Any = None
    ) -> Any:
        """An answer with whatever facts the test makes up."""
        text = key if isinstance(key, str) else key_text(key)
        metadata: list[tuple[str, str | bytes]] = [(TASK_KEY, text), (DIGEST_KEY, digest or digest_of(body)), (SIZE_KEY, size or str(len(body)))]
        if schema:
            metadata.append((SCHEMA_KEY, schema.encode() if isinstance(schema, str) else schema))
        return await soon(self.send(SUBMIT, frames(body) if parts is None else parts, metadata))

    async def answer(self, ask: Ask, delta: float | Vector = 0.0, weight: float = 10.0) -> Any:
        return await self.submit(ask.key, ask.words(delta, weight).tobytes())

    async def initialize(self, ask: Ask, model: Vector | None = None, schema: Schema = SCHEMA) -> Any:
        return await self.submit(ask.key, (schema.zeros() if model is None else model).tobytes(), schema=schema.to_json())

    def fail(self, key: Key, what: str = "ValueError in the app", cause: Cause = Cause.CODE) -> None:
        self.say(node_pb2.NodeMessage(failed=failure_to_proto(key, Failure(cause, what, "app.py:7", "see the log", "app.py:7"))))

    def work(self, learner: Any = None) -> asyncio.Task[None]:
        """Answer everything that is asked, in the background."""
        task = asyncio.create_task(self._work(learner or Counting()))
        self._tasks.append(task)
        return task

    async def _work(self, learner: Any) -> None:
        while True:
            await self.do(await self.ask(), learner)

    async def do(self, ask: Ask, learner: Any) -> Any:
        """Compute an answer and deliver it."""
        body, schema = await self.compute(ask, learner)
        return await self.submit(ask.key, body, schema=schema)

    async def compute(self, ask: Ask, learner: Any) -> tuple[bytes, str]:
        """Fetch the model and compute the answer as every node does; its bytes, and the schema of a first model."""
        task = ask.task
        model = task.schema.read(await self.fetch(task.model)) if task.schema else None
        answer = perform(task, ask.plan, ask.plan.strategy.build(), learner, None, model)
        return (answer.model.tobytes(), answer.schema.to_json()) if isinstance(answer, FirstModel) else (answer.tobytes(), "")


class Counting:
    """A learner whose model counts: every answer of training adds ``step`` to every coordinate, from 0 or an eighth of the seed on."""

    def __init__(self, step: float = 1.0, *, seeded: bool = False) -> None:
        self.step, self.seeded = np.float32(step), seeded

    def run(self, work: Work) -> Result:
        metrics = {name: np.array([1.0]) for name in work.metrics} or {"loss": np.array([1.0])}
        if work.phase is Phase.INIT or work.arrays is None:
            return Result({"w": np.full(4, work.seed / 8 if self.seeded else 0, np.float32)}, 0)
        return Result({"w": work.arrays["w"] + self.step} if work.phase is Phase.TRAIN else None, 10, metrics)


@dataclass
class Running:
    """A server, and everybody who talks to it."""

    path: Path
    settings: Settings
    ready: Ready
    engine: Engine
    task: asyncio.Task[None]
    people: list[Person] = field(default_factory=list)

    @classmethod
    async def start(cls, path: Path, database: Path | None = None, **settings: Any) -> Running:
        """A new server on ports of its own, also after a restart; ``database`` is a SQLite file to begin with."""
        given = Settings(**{"port": own_port(), "enrolment_port": own_port(), "web": False, "web_port": own_port(), **settings})
        Home.create(path, given, datetime.now(UTC))
        if database is not None and not given.database:
            shutil.copy(database, path / "server.db")
        running = await cls._serve(path, given)
        await running.admin.control.CreateProject(pb.CreateProjectRequest(name="ward"))
        await running.admin.put(BUNDLE)
        return running

    @classmethod
    async def _serve(cls, path: Path, settings: Settings) -> Running:
        engines: list[Engine] = []

        def recorded(*given: Any, **named: Any) -> Engine:
            engines.append(Engine(*given, **named))
            return engines[0]

        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        with patch("fedscale_server.app.Engine", recorded):
            task = asyncio.create_task(serve(path, settings, ready.set_result))
            either: list[asyncio.Future[Any]] = [task, ready]
            await asyncio.wait(either, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return cls(path, settings, ready.result(), engines[0], task)

    async def stop(self) -> None:
        """End the server as its owner does."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await soon(self.task)

    async def restart(self) -> None:
        """The server ends and comes back on the same ports."""
        await self.stop()
        ports = {name: int(address.rpartition(":")[2]) for name, address in (("port", self.ready.address), ("enrolment_port", self.ready.enrolment))}
        ports |= {"web_port": int(self.ready.dashboard.rpartition(":")[2])} if self.ready.dashboard else {}
        again = await self._serve(self.path, self.settings.model_copy(update=ports))
        self.ready, self.engine, self.task = again.ready, again.engine, again.task

    async def close(self) -> None:
        for person in self.people:
            if isinstance(person, Node):
                await person.leave()
            await person.channel.close()
        await self.stop()

    # ------------------------------------------------------------------------------------------------------------ people

    @property
    def admin(self) -> Person:
        """The operator, from the profile that the server's home holds."""
        for person in self.people:
            if person.name == "admin":
                return person
        folder = self.path / "admin"
        credentials = Pass(*((folder / f"{name}.pem").read_bytes() for name in ("key", "cert", "ca")))
        self.people.append(Person("admin", credentials, credentials.channel(self.ready.address)))
        return self.people[-1]

    async def join(self, name: str, role: Role, project: str = "ward") -> Pass:
        """Trade a ticket for a certificate, as a new member does."""
        reply = await self.admin.control.Invite(pb.InviteRequest(project=project, name=name, role=role))
        ticket, key = Ticket.parse(reply.ticket).places()[0], new_key()
        authority = self.admin.credentials.authority
        async with grpc.aio.secure_channel(ticket.address, grpc.ssl_channel_credentials(authority)) as channel:
            request = node_pb2.JoinRequest(ticket=ticket.id, secret=ticket.secret, name=name, request=new_request(key, name))
            joined = await node_pb2_grpc.EnrolmentStub(channel).Join(request)
        return Pass(key_pem(key), joined.certificate, authority)

    async def person(self, role: Role, name: str = "") -> Person:
        """Somebody who joined in that role."""
        credentials = await self.join(name or f"a-{role}", role)
        self.people.append(Person(name or f"a-{role}", credentials, credentials.channel(self.ready.address)))
        return self.people[-1]

    async def node(self, name: str, project: str = "ward", *, datasets: Iterable[str] = ("default",), connect: bool = True) -> Node:
        """A node that joined and, unless told otherwise, is connected."""
        credentials = await self.join(name, Role.NODE, project)
        node = Node(name, credentials, credentials.channel(self.ready.address), project)
        self.people.append(node)
        return await node.connect(datasets) if connect else node

    async def nodes(self, *names: str) -> list[Node]:
        return [await self.node(name) for name in names]

    # -------------------------------------------------------------------------------------------------------------- runs

    async def submit(self, plan: str, project: str = "ward", key: str = "") -> str:
        """Start a run; its id."""
        request = pb.SubmitRunRequest(project=project, plan=plan, bundle=digest_of(BUNDLE), key=key)
        return str((await soon(self.admin.control.SubmitRun(request))).run)

    async def begun(self, *nodes: Node, **plan: Any) -> tuple[str, list[Ask]]:
        """A run whose first model is there and whose first round asks these nodes."""
        run = await self.submit(plan_text(**{"clients": {"min_per_round": len(nodes)}, **plan}))
        first = await until(lambda: next((n for n in nodes if n.asks and n.asks[-1].run == run), None))
        receipt = await first.initialize(await first.ask("init"))
        assert receipt.verdict == Receipt.ACCEPTED, receipt
        return run, [await node.ask("train") for node in nodes]

    def timers(self, run: str) -> dict[str, asyncio.TimerHandle]:
        """The timers of a run that are armed."""
        driver = self.engine.driver(run)
        assert isinstance(driver, Driver)
        return driver._timers._armed

    def due(self, run: str, name: str) -> float:
        """Let a timer of a run go off now; how many seconds it had left. So no test depends on what is done before a short deadline."""
        handle = self.timers(run).pop(name)
        handle._run()
        handle.cancel()
        return handle.when() - asyncio.get_running_loop().time()

    async def events(self, run: str, after: int = 0) -> list[pb.RunEvent]:
        """Everything that happens to a run until it is over."""
        return [event async for event in self.admin.control.WatchRun(pb.WatchRunRequest(run=run, after=after), timeout=PATIENCE)]

    async def detail(self, run: str) -> tuple[Any, dict[str, Any]]:
        """What a run is and its record."""
        first, *rest = [part async for part in self.admin.control.GetRun(pb.GetRunRequest(run=run))]
        return first, json.loads("".join(part.record for part in (first, *rest)))

    async def over(self, run: str) -> tuple[Any, dict[str, Any]]:
        """The same once the run is over."""
        await self.events(run)
        return await self.detail(run)

    async def model(self, run: str) -> Vector:
        """The newest model of a run."""
        reply, _ = await self.detail(run)
        return np.frombuffer(await self.admin.fetch(reply.model), "<f4")
