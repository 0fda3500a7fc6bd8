"""Nodes that speak the protocol and train nothing: what a server costs can be seen without the cost of its nodes.

They join through the command line like any other, keep their control streams alive, fetch every model and upload answers of
the right layout, under secure aggregation with a node's own masking. All of them live in one process and need neither torch nor a worker.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
import numpy as np

import fedscale
from fedscale.errors import Failure
from fedscale.heap import share_one_heap
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.proto.v1 import bulk_pb2, node_pb2, node_pb2_grpc
from fedscale.task import Task
from fedscale.update import Layout, Update
from fedscale.vector import Schema
from fedscale.wire.codec import DIGEST_KEY, FETCH, OFFSET, SCHEMA_KEY, SIZE_KEY, SUBMIT, TASK_KEY, digest_of, opened, sealed
from fedscale.wire.convert import Key, assignment_from_proto, key_from_proto, key_text, key_to_proto
from fedscale.wire.limits import FRAME, HEARTBEAT_SECONDS, SHORT
from fedscale_client.answers import Answer
from fedscale_client.connection import Assignment
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome
from fedscale_client.masking import Masking
from fedscale_client.rpc import open_channel
from tests.e2e.federation import Event, Federation, Process

DATASET, LOOK_SECONDS, DEADLINE = "raw", 0.05, 7200.0
# What a node does for as long as it is one, with its home and the coordinates of the model.
Node: TypeAlias = Callable[[NodeHome, int], Coroutine[Any, Any, None]]


def join(federation: Federation, count: int) -> list[NodeHome]:
    """Homes of so many nodes that have joined and are not started."""
    homes = []
    for number in range(count):
        name = f"raw-{number:03}"
        federation.ask("node", "join", federation.invite(name), "--home", federation.node_home(name))
        homes.append(NodeHome(federation.node_home(name)))
    return homes


def write_job(folder: Path, size: int, rounds: int, nodes: int, *, masked: bool = False) -> Path:
    """A job whose model has ``size`` coordinates; nobody ever imports its app."""
    folder.mkdir(parents=True)
    (folder / "app.py").write_text("")
    tables = {
        "job": {"name": f"raw-{size}", "data": DATASET},
        "strategy": {"rounds": rounds},
        "clients": {"min_per_round": nodes, "deadline": DEADLINE},
    }
    tables |= {"evaluate": {"every": 0}, "secagg": {"enabled": masked}}
    (folder / "job.toml").write_text(Plan.model_validate(tables).to_toml())
    return folder / "job.toml"


def keep_answers(federation: Federation, durability: str) -> None:
    """Have the coordinator keep them as ``spool`` or ``resend`` says; it is started anew."""
    settings = federation.home / "server.toml"
    federation.server.stop()
    settings.write_text(re.sub('durability = "[a-z]+"', f'durability = "{durability}"', settings.read_text()))
    federation.start_server()


def play(federation: Federation, nodes: int, size: int, rounds: int, *, masked: bool = False, live: Node | None = None) -> list[Event]:
    """A run to its end with so many nodes and a model of ``size`` coordinates; everything that happened."""
    share_one_heap()  # as the process of a node does
    homes = join(federation, nodes)
    watching = federation.watch(federation.submit(write_job(federation.folder / "job", size, rounds, nodes, masked=masked)))
    asyncio.run(take_part(homes, size, watching, live))
    done = watching.wait()
    assert done.code == 0, done
    return watching.events()


async def take_part(homes: Sequence[NodeHome], size: int, watching: Process, live: Node | None = None) -> None:
    """Be these nodes for as long as somebody watches; of this kind, or such as do all that a node does but train."""
    async with asyncio.TaskGroup() as group:
        nodes = [group.create_task((live or _node)(home, size)) for home in homes]
        while watching.alive:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(LOOK_SECONDS)
        for node in nodes:
            node.cancel()


@lru_cache(maxsize=2)
def _first(size: int) -> tuple[bytes, str, str]:
    """A model as bytes, its digest and its schema."""
    body = bytes(4 * size)
    return body, digest_of(body), Schema.of({"w": np.zeros(size, np.float32)}).to_json()


@lru_cache(maxsize=2)
def _words(layout: Layout) -> tuple[bytes, str]:
    """An answer as bytes, and its digest."""
    delta = np.random.default_rng(0).normal(0, 1e-3, layout.size).astype(np.float32)
    body = layout.encode(Update(delta, 100.0, {"loss": np.ones(1)})).tobytes()
    return body, digest_of(body)


async def _node(home: NodeHome, size: int) -> None:
    """One node: greets, stays alive and does what it is asked."""
    settings, credentials = home.settings(), Credentials.of(home)
    async with AsyncExitStack() as stack:
        control, bulk = [await stack.enter_async_context(open_channel(settings, credentials, name=name)) for name in ("control", "bulk")]
        stream: Any = node_pb2_grpc.NodeStub(control).Connect()
        said: asyncio.Queue[node_pb2.NodeMessage] = asyncio.Queue()
        masking = Masking(home, lambda *told: said.put_nowait(_spoken(*told)), _refused)
        hello = node_pb2.Hello(version=fedscale.__version__, datasets=[DATASET], identity=masking.identity())
        await stream.write(node_pb2.NodeMessage(hello=hello))
        taken: set[tuple[str, str, int]] = set()
        async with asyncio.TaskGroup() as group, _talking(stream, said):
            while isinstance(message := await stream.read(), node_pb2.ServerMessage):
                key = message.assignment.key
                # A task may be asked for twice around a connection; it is answered once.
                if message.WhichOneof("message") == "assignment" and (key.run, key.phase, key.number) not in taken:
                    taken.add((key.run, key.phase, key.number))
                    group.create_task(_answer(bulk, home, masking, message.assignment, size))
                elif message.WhichOneof("message") == "told":
                    told = message.told
                    group.create_task(masking.told(key_from_proto(told.key), told.step, told.data))


def _spoken(key: Key, step: str, data: bytes) -> node_pb2.NodeMessage:
    return node_pb2.NodeMessage(spoken=node_pb2.Spoken(key=key_to_proto(key), step=step, data=data))


def _refused(_: Key, failure: Failure) -> None:
    raise AssertionError(str(failure))


@asynccontextmanager
async def _talking(stream: Any, said: asyncio.Queue[node_pb2.NodeMessage]) -> AsyncIterator[None]:
    """Say what is to be said, and something at least once in a while."""

    async def beat() -> None:
        while True:
            try:
                message = await asyncio.wait_for(said.get(), HEARTBEAT_SECONDS)
            except TimeoutError:
                message = node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat())
            await stream.write(message)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


async def _answer(bulk: grpc.aio.Channel, home: NodeHome, masking: Masking, assignment: node_pb2.Assignment, size: int) -> None:
    """Fetch the model and hand in an answer."""
    run, plan, task = assignment_from_proto(assignment, home.settings().name)
    key = (run, task.phase, task.number)
    asked = Assignment(key, plan, assignment.plan, task, assignment.terms, assignment.bundle, 600.0, (assignment.roster, assignment.authority))
    seat = masking.asked(asked)
    if seat is not None:
        await masking.open(asked, seat)
    await fetch(bulk, task)
    body, digest, schema = _first(size) if task.phase is Phase.INIT else (*await asyncio.to_thread(_words, task.layout), "")
    # By way of the disk, as at any node.
    path = home.path / "answer"
    await asyncio.to_thread(path.write_bytes, body)
    answer: Answer | Failure = Answer(path, digest, len(body), schema)
    if seat is not None and isinstance(answer, Answer):
        answer = await masking.mask(seat, answer, asyncio.get_running_loop().time() + 600.0)
    assert isinstance(answer, Answer), answer
    metadata = [(TASK_KEY, key_text((run, task.phase, task.number))), (DIGEST_KEY, answer.digest), (SIZE_KEY, str(answer.size))]
    await begin(bulk, metadata)
    submit: Any = bulk.stream_unary(SUBMIT, sealed, bulk_pb2.Receipt.FromString)
    receipt = await submit(_frames(answer.path), metadata=[*metadata, *([(SCHEMA_KEY, schema.encode())] if schema else [])])
    assert receipt.verdict == bulk_pb2.Receipt.ACCEPTED, receipt


async def fetch(bulk: grpc.aio.Channel, task: Task) -> None:
    """Receive the model, as a node does that has just joined."""
    if task.schema is not None:
        fetch: Any = bulk.unary_stream(FETCH, bulk_pb2.FetchRequest.SerializeToString)
        received = [len(opened(frame)) async for frame in fetch(bulk_pb2.FetchRequest(digest=task.model))]
        assert sum(received) == 4 * task.schema.size


async def begin(bulk: grpc.aio.Channel, facts: Sequence[tuple[str, str | bytes]]) -> None:
    """Ask whether to send an answer now, as any node does with more than a short frame; it is told when there is room."""
    given = {key: str(value) for key, value in facts}
    if int(given[SIZE_KEY]) > SHORT:
        ask: Any = bulk.unary_unary(OFFSET, bulk_pb2.OffsetRequest.SerializeToString, bulk_pb2.OffsetReply.FromString)
        await ask(bulk_pb2.OffsetRequest(task=given[TASK_KEY], digest=given[DIGEST_KEY]))


def _frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while frame := file.read(FRAME):
            yield frame
