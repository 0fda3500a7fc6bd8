"""Bulk transfer: raw frames in and out, named by content, checked before they are believed, resumed where they broke off."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fedscale.errors import NotFound, ProtocolError, Unreachable
from fedscale.identity import Role
from fedscale.lanes import DOWNLOAD, UPLOAD
from fedscale.learner import Phase
from fedscale.proto.v1 import bulk_pb2 as pb
from fedscale.ring import Extremes
from fedscale.wire.codec import (
    DIGEST_KEY,
    FETCH,
    LEDGER_KEY,
    OFFSET,
    OFFSET_KEY,
    PUT,
    RUN_KEY,
    SCHEMA_KEY,
    SEAL,
    SIZE_KEY,
    SUBMIT,
    TASK_KEY,
    Intake,
    opened,
)
from fedscale.wire.convert import Key, key_from_text
from fedscale.wire.limits import BUNDLE, LETTER
from fedscale_server.admission import Admission, Pass
from fedscale_server.courier import Courier
from fedscale_server.doorway import Doorway, Who
from fedscale_server.driver import Driver
from fedscale_server.engine import Engine
from fedscale_server.inflow import AHEAD, Inflow
from fedscale_server.outflow import LEAST_SHARE, Outflow, batch
from fedscale_server.registry import Registry
from fedscale_server.services.guard import Context, caller
from fedscale_server.store.blobs import Blobs
from fedscale_server.trail import Trail
from fedscale_server.uploads import Arrived, Upload, arrived

# A stream that flows and whose next frame is not there by then lets another one have its turn; without any for so long it has ended.
FLOW_SECONDS, STALL_SECONDS = 0.05, 60.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Announced:
    """What a sender says about its stream before it begins."""

    digest: str
    size: int
    offset: int = 0
    schema: str = ""


@dataclass(eq=False, slots=True)
class _Seat:
    """Where the uploads of one node to one run take place: one at a time, the newest."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    current: Pass | None = None
    whole: Announced | None = None


class BulkService:
    """Fetch, Submit, Offset and Put.

    Args:
        engine: the runs.
        registry: who belongs to which project.
        uploads: how many streams are written at the same time; the others wait at the senders.
        budget: bytes of memory that open uploads may take together.
        trail: remembers who took a model.
    """

    def __init__(self, engine: Engine, registry: Registry, uploads: int, budget: int, trail: Trail) -> None:
        self._engine, self._registry, self._trail = engine, registry, trail
        self._turns, self._hands = asyncio.Semaphore(uploads), ThreadPoolExecutor(uploads, "upload")
        # Half of the turns are left to those who come slowly; one more is inside, so that its first frames are here when another one is through.
        self._doorway = Doorway(uploads // 2 + 1)
        self._admission, self._outflow = Admission(budget, engine.clock.monotonic), Outflow()
        self._seats: dict[tuple[str, str], _Seat] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods; raw sides are sealed frames, opened and closed in threads."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            FETCH: grpc.unary_stream_rpc_method_handler(self.fetch, pb.FetchRequest.FromString, None),
            SUBMIT: grpc.stream_unary_rpc_method_handler(self.submit, None, pb.Receipt.SerializeToString),
            PUT: grpc.stream_unary_rpc_method_handler(self.put, None, pb.Receipt.SerializeToString),
            OFFSET: grpc.unary_unary_rpc_method_handler(self.offset, pb.OffsetRequest.FromString, pb.OffsetReply.SerializeToString),
        }
        return grpc.method_handlers_generic_handler("fedscale.v1.Frames", {name.rpartition("/")[2]: method for name, method in methods.items()})

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
            if identity.role is not Role.NODE and path.parent != self._engine.bundles.folder:
                await asyncio.to_thread(self._note, identity.name, request, driver)
            if isinstance(driver, Driver):
                driver.doing(identity.name, DOWNLOAD, again=request.offset > 0)
            share = LEAST_SHARE  # until all that come at once are there
            with self._outflow.joined():
                while frames := await asyncio.to_thread(batch, file, request.frame, share):
                    share = self._outflow.share()
                    for frame in frames:
                        if driver is not None:
                            driver.book.traffic.down += len(frame) - SEAL
                        yield frame

    def _note(self, who: str, request: pb.FetchRequest, driver: Driver | Courier | None) -> None:
        """Write down who takes a model: no byte of it leaves before."""
        runs = [driver.id] if driver else self._engine.store.holders(request.digest)
        self._trail.insist(who, "certificate", "model taken", ", ".join(runs), model=request.digest, offset=request.offset)

    async def offset(self, request: pb.OffsetRequest, context: Context) -> pb.OffsetReply:  # noqa: ARG002 - gRPC's shape
        """How much of an answer is here already; told to whoever may send the rest now."""
        node, key = caller().name, key_from_text(request.task)
        if not re.fullmatch("[0-9a-f]{64}", request.digest):
            raise ProtocolError("an answer is named by 64 hexadecimal digits")
        driver, seat = self._engine.driver(key[0]), self._seats.get((key[0], node))
        if driver is None or not driver.owes(key, node):
            return pb.OffsetReply()
        if seat and seat.whole and seat.whole.digest == request.digest:
            return pb.OffsetReply(offset=seat.whole.size)
        await self._doorway.enter((key[0], node))
        return pb.OffsetReply(offset=await asyncio.to_thread(lambda: arrived(_place(driver, key, node, request.digest))))

    async def submit(self, frames: AsyncIterator[bytes], context: Context) -> pb.Receipt:
        """A node's answer to a task."""
        node, facts = caller().name, _facts(context)
        key, given = key_from_text(facts.get(TASK_KEY, "")), _announced(facts)
        driver = self._engine.driver(key[0])
        if driver is None:
            self._engine.check(key[0])
            return pb.Receipt(verdict=pb.Receipt.CLOSED, reason="the run is over")
        if not driver.owes(key, node):
            return driver.receipt(key, node, given.digest)
        driver.require_size(key, given.size, given.schema)
        if isinstance(driver, Driver):
            driver.doing(node, UPLOAD, again=True)
        async with self._admitted((key[0], node), given) as (seat, leave):
            # Whoever had the seat before may have brought it in.
            if not driver.owes(key, node):
                return driver.receipt(key, node, given.digest)
            staged = driver.book.spool.blobs.staging()
            seen = await self._received(driver, key, node, given, staged, frames, leave)
            seat.whole = given
            try:
                return await _carried(driver.answered(key, node, Arrived(staged, given.digest, given.schema, _head(facts), seen)))
            finally:
                seat.whole = None
                # Whatever was not kept: refused, not wanted any more, or not storable at the moment.
                await asyncio.to_thread(staged.unlink, missing_ok=True)

    async def _received(
        self, driver: Driver | Courier, key: Key, node: str, given: Announced, staged: Path, frames: AsyncIterator[bytes], leave: Pass
    ) -> Extremes | None:
        """Write what arrives behind what is there, and check the whole; what breaks off stays. What was seen of it on the way."""
        path = await asyncio.to_thread(_place, driver, key, node, given.digest)
        # A first model is for everybody to see; an answer is not.
        cipher = None if key[1] is Phase.INIT else await asyncio.to_thread(driver.book.spool.vault.writing, path.name)
        lasting, seen = driver.book.spool.lasting, driver.extremes(key) if isinstance(driver, Driver) else None
        with closing(Upload(path, given.size, given.digest, given.offset, cipher, lasting=lasting, seen=seen)) as upload:
            try:
                await _carried(asyncio.to_thread(upload.resume))
                await self._pour(frames, upload.take, leave, (key[0], node))
                await _carried(asyncio.to_thread(upload.done, staged))
            finally:
                if not driver.owes(key, node):
                    upload.drop()
        return seen

    async def put(self, frames: AsyncIterator[bytes], context: Context) -> pb.Receipt:
        """A bundle from a coordinator, or the content of a letter from the leader of a run."""
        facts = _facts(context)
        given, run = _announced(facts), facts.get(RUN_KEY, "")
        blobs, limit = (await self._led(run), LETTER) if run else (self._engine.bundles, BUNDLE)
        if given.size > limit:
            raise ProtocolError(f"a {'letter' if run else 'bundle'} of {given.size} bytes", why=f"the limit is {limit}")
        if await asyncio.to_thread(blobs.has, given.digest):
            return pb.Receipt(verdict=pb.Receipt.DUPLICATE)
        staged = blobs.staging()
        try:
            with staged.open("wb") as file:
                intake = Intake(file, given.size, given.digest)
                await self._pour(frames, intake.take, self._admission.guest())
                intake.done()
            await _carried(asyncio.to_thread(blobs.adopt, staged, given.digest))
        finally:
            await asyncio.to_thread(staged.unlink, missing_ok=True)
        return pb.Receipt(verdict=pb.Receipt.ACCEPTED)

    async def _led(self, run: str) -> Blobs:
        """Where a run that the caller leads keeps the contents of letters."""
        courier, who = self._engine.courier(run), caller().name
        await courier.lead(who, partial(self._trail.insist, who, "certificate", "run led", run))
        return courier.book.spool.blobs

    @asynccontextmanager
    async def _admitted(self, who: tuple[str, str], given: Announced) -> AsyncIterator[tuple[_Seat, Pass]]:
        """Leave to upload. Where a node uploads twice, the connection of the older attempt is most likely dead: it gives way."""
        leave = self._admission.enter(given.size)
        seat = self._seats.setdefault(who, _Seat())
        seat.waiting += 1
        if seat.current:
            seat.current.oust(Unreachable("a newer upload of the same node has begun"))
        seat.current = leave
        try:
            async with seat.lock:
                _still(leave)
                yield seat, leave
        finally:
            self._admission.leave(leave)
            seat.waiting -= 1
            if not seat.waiting:
                del self._seats[who]

    async def _pour(self, frames: AsyncIterator[bytes], take: Callable[[memoryview], None], leave: Pass, who: Who = ("", "")) -> None:
        """Take all frames of a stream; one that comes slowly holds nobody up, one that stands still ends.

        Raises:
            Unreachable: nothing came for too long, or a frame is damaged.
            Busy: others need the room of a stream that stands still.
        """
        inflow, loop = Inflow(frames), asyncio.get_running_loop()
        brought: int | None = 0
        try:
            while brought is not None:
                self._doorway.awaited(who, flowed=brought >= AHEAD)
                here = await inflow.wait(STALL_SECONDS, {leave.ousted})
                self._doorway.came(who)
                _still(leave)
                if not here:
                    raise Unreachable("a transfer stands still", why=f"nothing came for {STALL_SECONDS:g} s", hint="send it again")
                async with self._turns:
                    inflow.turn(ours=True)
                    brought = await _carried(loop.run_in_executor(self._hands, self._flow, inflow, take, leave))
                    inflow.turn(ours=False)
        finally:
            self._doorway.leave(who)
            await inflow.close()

    def _flow(self, inflow: Inflow, take: Callable[[memoryview], None], leave: Pass) -> int | None:
        """Take frames for as long as they come without a pause; how many bytes, ``None`` at the end.

        Blocks: a thread stays with a stream for the whole turn.
        """
        brought = 0
        # Only a stream that flows is waited for: a few hundred that crawl would have all turns to themselves.
        while parts := inflow.take(FLOW_SECONDS if brought >= AHEAD else 0.0):
            for part in parts:
                take(opened(part))
                brought += len(part)
            self._admission.moved(leave)
            _still(leave)
        return None if parts is None else brought


def _place(driver: Driver | Courier, key: Key, node: str, digest: str) -> Path:
    """Where an answer lies while it arrives."""
    spool = driver.book.spool
    return spool.upload(spool.answer(str(key[1]), key[2], node, digest))


def _still(leave: Pass) -> None:
    """Whether an upload may go on."""
    if leave.ousted.done():
        raise leave.ousted.result()


async def _carried(work: Awaitable[T]) -> T:
    """A result, carried through even when whoever waits is cancelled: the file that is written to must not be closed meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody is left to hear of it
        raise


def _facts(context: Context) -> dict[str, str]:
    """The call's metadata as text."""
    pairs: Any = context.invocation_metadata() or ()
    return {key: value.decode(errors="replace") if isinstance(value, bytes) else value for key, value in pairs}


def _head(facts: dict[str, str]) -> str:
    """The end of the sender's privacy ledger; empty where it tells none that could be one."""
    return head if re.fullmatch(r"[0-9]{1,18}:[0-9a-f]{64}", head := facts.get(LEDGER_KEY, "")) else ""


def _announced(facts: dict[str, str]) -> Announced:
    """Digest, size, offset and schema that a sender announces.

    Raises:
        ProtocolError: missing or malformed.
    """
    digest, size, offset = facts.get(DIGEST_KEY, ""), facts.get(SIZE_KEY, ""), facts.get(OFFSET_KEY, "0")
    if not re.fullmatch("[0-9a-f]{64}", digest) or not all(re.fullmatch("[0-9]{1,15}", number) for number in (size, offset)):
        raise ProtocolError("a transfer does not announce its digest and size")
    return Announced(digest, int(size), int(offset), facts.get(SCHEMA_KEY, ""))
