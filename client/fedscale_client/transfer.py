"""Bulk data to and from the server: blobs are fetched into the cache, answers delivered until the server has said what became of them.

Transfers outlive the control stream. What ends an attempt is a lack of progress, never its length; what ends a transfer
is the task it belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import grpc
import grpc.aio

from fedscale.clock import SystemClock
from fedscale.errors import ProtocolError, Unreachable
from fedscale.proto.v1 import bulk_pb2 as pb
from fedscale.wire.codec import DIGEST_KEY, FETCH, LEDGER_KEY, OFFSET, OFFSET_KEY, SCHEMA_KEY, SEAL, SIZE_KEY, SUBMIT, TASK_KEY, opened, sealed
from fedscale.wire.convert import Key, key_text
from fedscale.wire.limits import BUNDLE, FRAME, SHORT
from fedscale_client.answers import Answer
from fedscale_client.cache import Cache, Part
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeSettings
from fedscale_client.rpc import error_of, is_passing, open_channel, pause
from fedscale_client.throttle import Throttle

# A server that reads other nodes' answers first lets ours wait in its window; keepalive notices sooner when it is gone.
STALL_SECONDS = 600.0
CORRUPT_ATTEMPTS = 3
# A frame that was not complete when the line broke is sent again: on a slow line, or one that breaks often, frames are small.
FIRST_FRAME, LEAST_FRAME, QUICK_SECONDS, SLOW_SECONDS = 64 << 10, 16 << 10, 0.1, 1.0
VERDICTS = {number: name.lower() for name, number in pb.Receipt.Verdict.items() if number != pb.Receipt.UNKNOWN}
T = TypeVar("T")


class Verdict(NamedTuple):
    """What became of an answer: the server's word and reason, and whether it may have to ask for the answer again."""

    word: str
    reason: str
    keep: bool = False


@dataclass(eq=False, slots=True)
class _Line:
    """A channel and how many transfers use it."""

    channel: grpc.aio.Channel
    users: int = 0


@dataclass(slots=True)
class _Tries:
    """Attempts that got nowhere since the last one that did, and how far that was."""

    failures: int = 0
    reached: int = 0

    def reach(self, offset: int) -> None:
        """So much has arrived."""
        if offset > self.reached:
            self.failures, self.reached = 0, offset


class Transfer:
    """Moves bulk data for one node.

    Args:
        settings: where the server is.
        cache: where blobs are kept.
        throttle: how much of the site's line may be taken; by default what the settings say.
    """

    def __init__(self, settings: NodeSettings, cache: Cache, throttle: Throttle | None = None) -> None:
        self._settings, self._cache = settings, cache
        self._throttle = throttle or Throttle(settings.rate_limit, settings.quiet_hours, SystemClock().now)
        self._line: _Line | None = None
        self._opened = asyncio.Event()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def use(self, credentials: Credentials, server: NodeSettings | None = None) -> None:
        """A server is there: whoever waits tries again at once, from now on with these credentials, at that server if it is another one."""
        self._settings = server or self._settings
        former, self._line = self._line, _Line(open_channel(self._settings, credentials, name="bulk"))
        if former and not former.users:
            await former.channel.close()
        self._opened.set()
        self._opened = asyncio.Event()

    async def close(self) -> None:
        """Close the channel once nothing uses it."""
        if self._line:
            await self._line.channel.close()

    async def model(self, digest: str, size: int) -> Path:
        """The file of a model of ``size`` bytes, fetched if need be.

        Raises:
            FedscaleError: the server refuses, or sends something else.
            OSError: the disk refuses.
        """
        async with self._turn(digest):
            return self._cache.blob(digest) or await self._fetch(digest, size)

    async def bundle(self, digest: str) -> Path:
        """The folder of an unpacked bundle, fetched if need be.

        Raises:
            FedscaleError: the server refuses, sends something else, or it is not a bundle.
            OSError: the disk refuses.
        """
        async with self._turn(digest):
            if folder := self._cache.bundle(digest):
                return folder
            if not self._cache.blob(digest):
                await self._fetch(digest, BUNDLE)
            return await asyncio.to_thread(self._cache.unpack, digest)

    async def submit(self, key: Key, answer: Answer, head: str = "") -> Verdict:
        """Deliver an answer, however often the connection breaks.

        Args:
            key: whose answer.
            answer: what is delivered.
            head: the end of this site's ledger, which the coordinator notes; empty for none.

        Raises:
            FedscaleError: the server refuses to hear it.
            OSError: the answer cannot be read any more.
        """
        receipt = await self._patiently(partial(self._deliver, key, answer, head))
        if receipt.verdict not in VERDICTS:
            raise ProtocolError("the server did not say what became of an answer", where=key_text(key))
        return Verdict(VERDICTS[receipt.verdict], receipt.reason, receipt.keep)

    def _turn(self, digest: str) -> asyncio.Lock:
        """Two tasks that want the same blob fetch it once."""
        return self._turns.setdefault(digest, asyncio.Lock())

    async def _fetch(self, digest: str, most: int, attempts: int = CORRUPT_ATTEMPTS) -> Path:
        """Fetch a blob; one that arrives corrupt is asked for again from its beginning, a few times."""
        async with self._part(digest, most) as part:
            await self._patiently(partial(self._receive, digest, part))
            try:
                return await asyncio.to_thread(self._cache.keep, part, digest)
            except ProtocolError:
                if attempts <= 1:
                    raise
        return await self._fetch(digest, most, attempts - 1)

    @asynccontextmanager
    async def _part(self, digest: str, most: int) -> AsyncIterator[Part]:
        """What has arrived of a blob, open for more; closed in the end, also for who no longer waited for it to open."""
        opening = asyncio.create_task(asyncio.to_thread(self._cache.part, digest, most))
        try:
            yield await asyncio.shield(opening)
        finally:
            (await opening).close()

    async def _receive(self, digest: str, part: Part, tries: _Tries) -> None:
        """One attempt: everything from where the part ends."""
        await self._throttle.open()
        async with self._channel() as channel:
            fetch: grpc.aio.UnaryStreamMultiCallable[pb.FetchRequest, bytes] = channel.unary_stream(FETCH, pb.FetchRequest.SerializeToString)
            call = fetch(pb.FetchRequest(digest=digest, offset=part.size, frame=max(FRAME >> min(tries.failures, 8), LEAST_FRAME)))
            try:
                while isinstance(frame := await _soon(call.read()), bytes):
                    await asyncio.to_thread(_kept, part, frame)
                    tries.reach(part.size)
                    await self._throttle.take(len(frame))
            finally:
                call.cancel()

    async def _arrived(self, channel: grpc.aio.Channel, key: Key, answer: Answer) -> int:
        """How much of an answer the server has from earlier attempts."""
        ask: grpc.aio.UnaryUnaryMultiCallable[pb.OffsetRequest, pb.OffsetReply] = channel.unary_unary(
            OFFSET, pb.OffsetRequest.SerializeToString, pb.OffsetReply.FromString
        )
        reply = await _soon(ask(pb.OffsetRequest(task=key_text(key), digest=answer.digest)))
        return min(reply.offset, answer.size)

    async def _deliver(self, key: Key, answer: Answer, head: str, tries: _Tries) -> pb.Receipt:
        """One attempt: what the server does not have yet, and its receipt."""
        metadata: list[tuple[str, str | bytes]] = [(TASK_KEY, key_text(key)), (DIGEST_KEY, answer.digest), (SIZE_KEY, str(answer.size))]
        if answer.schema:
            metadata.append((SCHEMA_KEY, answer.schema.encode()))
        if head:
            metadata.append((LEDGER_KEY, head))
        await self._throttle.open()
        async with self._channel() as channel:
            # What fits into a short frame is sent as quickly as it could be asked for.
            offset = await self._arrived(channel, key, answer) if answer.size > SHORT else 0
            metadata.append((OFFSET_KEY, str(offset)))
            tries.reach(offset)
            # The server may answer before it has read everything: the round is closed, or it knows the answer already. grpc.aio
            # loses an early answer unless it is being read; so the one response of this call is read as a stream, from the start.
            submit: grpc.aio.StreamStreamMultiCallable[bytes, pb.Receipt] = channel.stream_stream(SUBMIT, None, pb.Receipt.FromString)
            call = submit(metadata=metadata)
            reading = asyncio.create_task(_first(call))
            try:
                with answer.path.open("rb") as file, suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    file.seek(offset)
                    await self._write(call, reading, file, max(FIRST_FRAME >> tries.failures, LEAST_FRAME))
                    await _soon(call.done_writing())
                return await _soon(reading)
            finally:
                reading.cancel()
                call.cancel()

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, pb.Receipt], reading: asyncio.Task[pb.Receipt], file: BinaryIO, size: int) -> None:
        """Send a file from where it stands until it ends or the server answers; frames grow while the line is quick."""
        while not reading.done() and (frame := await asyncio.to_thread(_next, file, size)):
            began = asyncio.get_running_loop().time()
            await self._throttle.take(len(frame) - SEAL)
            await _soon(call.write(frame))
            seconds = asyncio.get_running_loop().time() - began
            if seconds < QUICK_SECONDS:
                size = min(2 * size, FRAME)
            elif seconds > SLOW_SECONDS:
                size = max(size // 2, LEAST_FRAME)

    async def _patiently(self, attempt: Callable[[_Tries], Awaitable[T]]) -> T:
        """Try until it works or can never work; a fresh connection ends the pause, and whoever gets further waits less."""
        tries = _Tries()
        while True:
            try:
                return await attempt(tries)
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                if not is_passing(error):
                    raise error_of(error, self._settings.address) from None
                seconds = pause(tries.failures, error)
            except Unreachable:
                seconds = pause(tries.failures)
            tries.failures += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._opened.wait(), seconds)

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """The current channel; one that has been replaced is closed by its last user."""
        while self._line is None:
            await self._opened.wait()
        line = self._line
        line.users += 1
        try:
            yield line.channel
        finally:
            line.users -= 1
            if line is not self._line and not line.users:
                await line.channel.close()


def _next(file: BinaryIO, size: int) -> bytes:
    """The next frame of a file as it travels; empty at its end."""
    return sealed(data) if (data := file.read(size)) else b""


def _kept(part: Part, frame: bytes) -> None:
    """Keep a frame as it travelled."""
    part.take(opened(frame))


async def _first(call: grpc.aio.StreamStreamCall[bytes, pb.Receipt]) -> pb.Receipt:
    """The one response of a call.

    Raises:
        ProtocolError: it ended without any.
    """
    if isinstance(receipt := await call.read(), pb.Receipt):
        return receipt
    raise ProtocolError("the server did not say what became of an answer")


async def _soon(step: Awaitable[T]) -> T:
    """One step of a transfer.

    Raises:
        TimeoutError: no progress for ``STALL_SECONDS``.
    """
    async with asyncio.timeout(STALL_SECONDS):
        return await step
