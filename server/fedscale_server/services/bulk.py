"""Bulk transfer: raw frames in and out, named by content, checked before they are believed."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from fedscale.errors import NotFound, ProtocolError, Unreachable
from fedscale.identity import Role
from fedscale.proto.v1 import bulk_pb2 as pb
from fedscale.wire.codec import DIGEST_KEY, FETCH, PUT, SCHEMA_KEY, SIZE_KEY, SUBMIT, TASK_KEY, Intake
from fedscale.wire.convert import key_from_text
from fedscale.wire.limits import BUNDLE, FRAME
from fedscale_server.engine import Engine
from fedscale_server.registry import Registry
from fedscale_server.services.guard import Context, caller

STALL_SECONDS = 30.0


class BulkService:
    """Fetch, Submit and Put.

    Args:
        engine: the runs.
        registry: who belongs to which project.
        uploads: how many uploads are read at the same time; the others wait in the senders' windows, so memory does not
            grow with the number of nodes.
    """

    def __init__(self, engine: Engine, registry: Registry, uploads: int) -> None:
        self._engine, self._registry = engine, registry
        self._slots = asyncio.Semaphore(uploads)

    def handler(self) -> grpc.GenericRpcHandler:
        """The three methods with identity serialisers for the raw sides."""
        methods = {
            FETCH: grpc.unary_stream_rpc_method_handler(self.fetch, pb.FetchRequest.FromString, None),
            SUBMIT: grpc.stream_unary_rpc_method_handler(self.submit, None, pb.Receipt.SerializeToString),
            PUT: grpc.stream_unary_rpc_method_handler(self.put, None, pb.Receipt.SerializeToString),
        }
        return grpc.method_handlers_generic_handler("fedscale.v1.Bulk", {name.rpartition("/")[2]: method for name, method in methods.items()})

    async def fetch(self, request: pb.FetchRequest, context: Context) -> AsyncIterator[bytes]:  # noqa: ARG002 - gRPC's shape
        """A blob's bytes from an offset on."""
        identity = caller()
        project = (await asyncio.to_thread(self._registry.member, identity.name)).project if identity.role is Role.NODE else None
        path, driver = await asyncio.to_thread(self._engine.locate, request.digest, project, identity.name)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise NotFound("the blob is not needed any more", where=request.digest[:12]) from None
        with file:
            if request.offset > os.fstat(file.fileno()).st_size:
                raise ProtocolError("a blob was asked for from beyond its end", where=request.digest[:12])
            file.seek(request.offset)
            while frame := await asyncio.to_thread(file.read, FRAME):
                if driver is not None:
                    driver.book.traffic.down += len(frame)
                yield frame

    async def submit(self, frames: AsyncIterator[bytes], context: Context) -> pb.Receipt:
        """A node's answer to a task."""
        node, facts = caller().name, _facts(context)
        key, (digest, size) = key_from_text(facts.get(TASK_KEY, "")), _announced(facts)
        driver = self._engine.driver(key[0])
        if driver is None:
            return pb.Receipt(verdict=pb.Receipt.CLOSED, reason="the run is over")
        async with self._slots:
            if not driver.owes(key, node):
                return driver.receipt(key, node, digest)
            schema = facts.get(SCHEMA_KEY, "")
            expected = driver.expected(key, schema)
            if size != expected:
                raise ProtocolError(f"an answer of {size} bytes", why=f"the round asks for {expected}")
            staged = driver.book.spool.blobs.staging()
            await _receive_into(staged, frames, size, digest)
            return await driver.answered(key, node, staged, digest, schema)

    async def put(self, frames: AsyncIterator[bytes], context: Context) -> pb.Receipt:
        """A bundle from a coordinator."""
        digest, size = _announced(_facts(context))
        if size > BUNDLE:
            raise ProtocolError(f"a bundle of {size} bytes", why=f"the limit is {BUNDLE}")
        if await asyncio.to_thread(self._engine.bundles.has, digest):
            return pb.Receipt(verdict=pb.Receipt.DUPLICATE)
        staged = self._engine.bundles.staging()
        await _receive_into(staged, frames, size, digest)
        await asyncio.to_thread(self._engine.bundles.adopt, staged, digest)
        return pb.Receipt(verdict=pb.Receipt.ACCEPTED)


def _facts(context: Context) -> dict[str, str]:
    """The call's metadata as text."""
    pairs: Any = context.invocation_metadata() or ()
    return {key: value.decode(errors="replace") if isinstance(value, bytes) else value for key, value in pairs}


def _announced(facts: dict[str, str]) -> tuple[str, int]:
    """Digest and size a sender announces.

    Raises:
        ProtocolError: missing or malformed.
    """
    digest, size = facts.get(DIGEST_KEY, ""), facts.get(SIZE_KEY, "")
    if not re.fullmatch("[0-9a-f]{64}", digest) or not re.fullmatch("[0-9]{1,15}", size):
        raise ProtocolError("a transfer does not announce its digest and size")
    return digest, int(size)


async def _receive_into(staged: Path, frames: AsyncIterator[bytes], size: int, digest: str) -> None:
    """Write a stream to a file and check it; the file is there only if all of it is.

    Raises:
        ProtocolError: too long, too short or another content.
        Unreachable: the sender has stopped in the middle.
    """
    try:
        with staged.open("wb") as file:
            intake = Intake(file, size, digest)
            while (frame := await _next(frames)) is not None:
                await asyncio.to_thread(intake.take, frame)
            intake.done()
    except BaseException:
        await asyncio.to_thread(staged.unlink, missing_ok=True)
        raise


async def _next(frames: AsyncIterator[bytes]) -> bytes | None:
    """The next frame, ``None`` at the end; whoever stands still must not keep others waiting for ever."""
    try:
        return await asyncio.wait_for(anext(frames, None), STALL_SECONDS)
    except TimeoutError:
        raise Unreachable("a transfer stands still", why=f"nothing came for {STALL_SECONDS:g} s", hint="send it again") from None
