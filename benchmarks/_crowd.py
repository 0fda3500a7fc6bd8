"""Nodes by the hundred in one process, known by their certificates alone: such as have nothing to do, and such as crawl."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import grpc.aio
import numpy as np

import fedscale
from fedscale.identity import Identity, Role, certificate_pem, key_pem, new_key, new_request
from fedscale.proto.v1 import bulk_pb2, node_pb2, node_pb2_grpc
from fedscale.update import Layout, Update
from fedscale.vector import Schema
from fedscale.wire.codec import DIGEST_KEY, SCHEMA_KEY, SIZE_KEY, SUBMIT, TASK_KEY, digest_of, sealed
from fedscale.wire.convert import assignment_from_proto, key_text
from fedscale.wire.limits import CHANNEL_OPTIONS, FRAME, HEARTBEAT_SECONDS
from fedscale_client.rpc import pause
from fedscale_client.transfer import LEAST_FRAME
from fedscale_server.home import Home
from fedscale_server.store.store import Store
from tests.e2e.federation import PROJECT, Federation

SLOW_RATE, SLOW_SIZE = 10_000, 1 << 20


@dataclass(frozen=True)
class Member:
    """A node that is known by its certificate alone and keeps no folder."""

    name: str
    key: bytes
    certificate: bytes
    authority: bytes

    def channel(self, federation: Federation) -> grpc.aio.Channel:
        """A connection of its own."""
        credentials = grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)
        options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        return grpc.aio.secure_channel(f"localhost:{federation.ports[0]}", credentials, options)


def enrolled(federation: Federation, prefix: str, count: int) -> list[Member]:
    """So many nodes, entered into the database while the coordinator is down, for tickets would take minutes."""
    federation.server.stop()
    home, store, now, made = Home.load(federation.home), Store.open(f"sqlite:///{federation.home / 'server.db'}"), datetime.now(UTC), []
    for number in range(count):
        name, key = f"{prefix}-{number:04}", new_key()
        certificate = home.authority.issue(new_request(key, name), Identity("trial", Role.NODE, name), now, 24)
        serial = f"{certificate.serial_number:x}"
        store.enrol(name, PROJECT, Role.NODE, serial, certificate.not_valid_after_utc, certificate.not_valid_before_utc)
        made.append(Member(name, key_pem(key), certificate_pem(certificate), certificate_pem(home.authority.certificate)))
    store.close()
    federation.start_server()
    return made


@asynccontextmanager
async def stream(federation: Federation, member: Member, dataset: str) -> AsyncIterator[Any]:
    """A control stream that was greeted, and its connection; heartbeats go on until it is left."""
    async with member.channel(federation) as channel:
        opened: Any = node_pb2_grpc.NodeStub(channel).Connect()
        await opened.write(node_pb2.NodeMessage(hello=node_pb2.Hello(version=fedscale.__version__, datasets=[dataset])))
        assert isinstance(await opened.read(), node_pb2.ServerMessage)
        beating = asyncio.create_task(_beat(opened))
        try:
            yield opened, channel
        finally:
            beating.cancel()
            opened.cancel()


async def _beat(opened: Any) -> None:
    while True:
        await opened.write(node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat()))
        await asyncio.sleep(HEARTBEAT_SECONDS)


@dataclass(slots=True)
class Light:
    """A node that is connected and has nothing to do: how often it was greeted, when it heard of the server last, and its longest wait for that."""

    member: Member
    greeted: int = 0
    heard: float = 0.0
    silence: float = 0.0

    async def live(self, federation: Federation) -> None:
        """Come back whenever the stream breaks, after the pauses of a real node."""
        attempt = 0
        while True:
            with suppress(grpc.aio.AioRpcError, AssertionError, TimeoutError):
                async with stream(federation, self.member, "none") as (opened, _):
                    self.greeted, self.heard, attempt = self.greeted + 1, time.monotonic(), 0
                    while isinstance(await opened.read(), node_pb2.ServerMessage):
                        self.silence, self.heard = max(self.silence, time.monotonic() - self.heard), time.monotonic()
            attempt += 1
            await asyncio.sleep(pause(attempt))


async def crawl(member: Member, opened: Any, channel: grpc.aio.Channel) -> None:
    """Make the first model at once, and hand in answers at 10 kB/s, in the frames of a node whose line is as slow as that."""
    delivering: set[asyncio.Task[None]] = set()
    while isinstance(message := await opened.read(), node_pb2.ServerMessage):
        if message.WhichOneof("message") == "assignment":
            delivering.add(asyncio.create_task(_deliver(member, message.assignment, channel)))
        elif message.WhichOneof("message") == "release":
            while delivering:
                delivering.pop().cancel()


@lru_cache(maxsize=2)
def _nothing(layout: Layout) -> tuple[bytes, str]:
    """A first model of zeros, or an answer that changes none, and its digest."""
    change = Update(np.zeros(layout.size, np.float32), 1.0, {"loss": np.ones(1)})
    body = layout.encode(change).tobytes() if layout.size else bytes(4 * SLOW_SIZE)
    return body, digest_of(body)


async def _deliver(member: Member, assignment: node_pb2.Assignment, channel: grpc.aio.Channel) -> None:
    run, _, task = assignment_from_proto(assignment, member.name)
    first = task.schema is None
    body, digest = _nothing(task.layout)
    facts = [(TASK_KEY, key_text((run, task.phase, task.number))), (DIGEST_KEY, digest), (SIZE_KEY, str(len(body)))]
    schema = [(SCHEMA_KEY, Schema.of({"w": np.zeros(SLOW_SIZE, np.float32)}).to_json().encode())] if first else []
    submit: Any = channel.stream_unary(SUBMIT, sealed, bulk_pb2.Receipt.FromString)
    size, pause_seconds = (FRAME, 0.0) if first else (LEAST_FRAME, LEAST_FRAME / SLOW_RATE)
    with suppress(grpc.aio.AioRpcError):
        await submit(_frames(body, size, pause_seconds), metadata=[*facts, *schema])


async def _frames(body: bytes, size: int, pause: float) -> AsyncIterator[bytes]:
    """So many bytes, then a pause, then more."""
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(pause)
