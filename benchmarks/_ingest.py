"""Processes of the ingest benchmark: nodes that send answers made beforehand, and gRPC alone, which shows what the machine can take.

``python -m benchmarks._ingest node HOME SIZE``, ``sink SERVER_HOME STREAMS`` and ``pour HOME ADDRESS SIZE``; all over mutual TLS, with
the options of the real ones. Frames are sealed before the clock starts, and nobody fetches a model.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
import numpy as np

import fedscale
from benchmarks._raw import begin, fetch
from fedscale.heap import share_one_heap
from fedscale.proto.v1 import bulk_pb2, node_pb2, node_pb2_grpc
from fedscale.task import Task
from fedscale.update import Layout, Update
from fedscale.vector import Schema
from fedscale.wire.codec import DIGEST_KEY, SCHEMA_KEY, SIZE_KEY, SUBMIT, TASK_KEY, digest_of, frames, sealed
from fedscale.wire.convert import assignment_from_proto, key_text
from fedscale.wire.limits import HEARTBEAT_SECONDS, SERVER_OPTIONS
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome
from fedscale_client.rpc import is_passing, open_channel, pause
from fedscale_server.certificates import Certificates
from fedscale_server.home import Home

DATASET, POUR = "raw", "/fedscale.benchmarks/Pour"
# What answers a task for so many coordinates: its frames as they travel, and its digest.
Stock: TypeAlias = Callable[[Task, int], tuple[Iterable[bytes], str]]


@lru_cache(maxsize=1)
def _answer(layout: Layout) -> tuple[list[bytes], str]:
    """An answer's frames and digest."""
    delta = np.random.default_rng(0).normal(0, 1e-3, layout.size).astype(np.float32)
    body = layout.encode(Update(delta, 100.0, {"loss": np.ones(1)})).tobytes()
    return [sealed(frame) for frame in frames(body)], digest_of(body)


def _first(size: int) -> tuple[list[bytes], str]:
    """A first model's frames and digest."""
    body = bytes(4 * size)
    return [sealed(frame) for frame in frames(body)], digest_of(body)


def ready(task: Task, size: int) -> tuple[list[bytes], str]:
    """What was made at the first task of its kind."""
    return _answer(task.layout) if task.schema else _first(size)


async def node(home: NodeHome, size: int, stock: Stock = ready, *, fetching: bool = False) -> None:
    """Greet, stay alive, and answer every task; for each the model is fetched, and thrown away, or is not."""
    settings, credentials = home.settings(), Credentials.of(home)
    async with open_channel(settings, credentials, name="control") as control, open_channel(settings, credentials, name="bulk") as bulk:
        stream: Any = node_pb2_grpc.NodeStub(control).Connect()
        await stream.write(node_pb2.NodeMessage(hello=node_pb2.Hello(version=fedscale.__version__, datasets=[DATASET])))
        taken: set[tuple[str, str, int]] = set()
        async with asyncio.TaskGroup() as group:
            group.create_task(_alive(stream))
            while isinstance(message := await stream.read(), node_pb2.ServerMessage):
                key = (message.assignment.key.run, message.assignment.key.phase, message.assignment.key.number)
                if message.WhichOneof("message") == "assignment" and key not in taken:
                    taken.add(key)
                    run, _, task = assignment_from_proto(message.assignment, settings.name)
                    group.create_task(_answered(bulk, run, task, size, stock, fetching=fetching))


async def _alive(stream: Any) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        await stream.write(node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat()))


async def _answered(bulk: grpc.aio.Channel, run: str, task: Task, size: int, stock: Stock, *, fetching: bool) -> None:
    """Send what the stock has."""
    parts, digest = await asyncio.to_thread(stock, task, size)
    if fetching:
        await fetch(bulk, task)
    count = task.layout.length if task.schema else size
    facts: list[tuple[str, str | bytes]] = [(TASK_KEY, key_text((run, task.phase, task.number))), (DIGEST_KEY, digest), (SIZE_KEY, str(4 * count))]
    schema = [] if task.schema else [(SCHEMA_KEY, Schema.of({"w": np.broadcast_to(np.float32(0), size)}).to_json().encode())]
    receipt = await _heard(bulk, parts, [*facts, *schema])
    assert receipt.verdict in (bulk_pb2.Receipt.ACCEPTED, bulk_pb2.Receipt.DUPLICATE), receipt


async def _heard(bulk: grpc.aio.Channel, parts: Iterable[bytes], facts: list[tuple[str, str | bytes]]) -> bulk_pb2.Receipt:
    """What the server says, however often the line breaks; gRPC calls it one, too, when a server ends a call that still sends."""
    submit: Any = bulk.stream_unary(SUBMIT, None, bulk_pb2.Receipt.FromString)
    attempt = 0
    while True:
        try:
            await begin(bulk, facts)
            receipt: bulk_pb2.Receipt = await submit(iter(parts), metadata=facts)
        except grpc.aio.AioRpcError as error:
            if not is_passing(error):
                raise
            await asyncio.sleep(pause(attempt, error))
            attempt += 1
        else:
            return receipt


async def _sink(path: Path, streams: int) -> None:
    """Take so many streams and throw them away; says the port, and then the bytes a second from the first frame to the last."""
    began, taken, over = 0.0, 0, asyncio.Semaphore(0)

    async def take(parts: AsyncIterator[bytes], _: Any) -> bytes:
        nonlocal began, taken
        async for part in parts:
            began = began or time.perf_counter()
            taken += len(part)
        over.release()
        return b""

    server, (service, _, method) = grpc.aio.server(options=SERVER_OPTIONS), POUR[1:].rpartition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: grpc.stream_unary_rpc_method_handler(take)}),))
    port = server.add_secure_port("127.0.0.1:0", Certificates(Home.load(path)).credentials(members=True))
    await server.start()
    print(port, flush=True)
    for _ in range(streams):
        await over.acquire()
    print(taken / (time.perf_counter() - began), flush=True)
    await server.stop(1.0)


async def _pour(home: NodeHome, address: str, size: int) -> None:
    """Send so many coordinates to a sink."""
    parts, _ = _first(size)
    async with open_channel(home.settings().model_copy(update={"address": address}), Credentials.of(home), name="bulk") as channel:
        await channel.channel_ready()
        call: Any = channel.stream_unary(POUR, None, None)
        await call(iter(parts))


def main(role: str, home: str, *rest: str) -> None:
    """Play a role until it is over, or for ever."""
    share_one_heap()
    if role == "node":
        asyncio.run(node(NodeHome(Path(home)), int(rest[0])))
    elif role == "sink":
        asyncio.run(_sink(Path(home), int(rest[0])))
    else:
        asyncio.run(_pour(NodeHome(Path(home)), rest[0], int(rest[1])))


if __name__ == "__main__":
    main(*sys.argv[1:])
