"""Bulk data to and from the server: blobs are fetched into the cache, answers delivered until the server has said what became of them.

Transfers outlive the control stream. What ends an attempt is a lack of progress, never its length; what ends a transfer
is the task it belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import grpc
import grpc.aio

from fedscale.errors import ProtocolError
from fedscale.proto.v1 import bulk_pb2 as pb
from fedscale.wire.codec import DIGEST_KEY, FETCH, SCHEMA_KEY, SIZE_KEY, SUBMIT, TASK_KEY
from fedscale.wire.convert import Key, key_text
from fedscale.wire.limits import BUNDLE, FRAME
from fedscale_client.cache import Cache, Part
from fedscale_client.home import Credentials, NodeSettings
from fedscale_client.rpc import error_of, is_passing, open_channel, pause

# A server that reads other nodes' answers first lets ours wait in its window; keepalive notices sooner when it is gone.
STALL_SECONDS = 600.0
CORRUPT_ATTEMPTS = 3
VERDICTS = {number: name.lower() for name, number in pb.Receipt.Verdict.items() if number != pb.Receipt.UNKNOWN}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A task's answer on its way to the server: words, or for a first model its bytes and schema."""

    path: Path
    digest: str
    size: int
    schema: str = ""

    def forget(self) -> None:
        """The server has it, or does not want it."""
        self.path.unlink(missing_ok=True)


@dataclass(eq=False, slots=True)
class _Line:
    """A channel and how many transfers use it."""

    channel: grpc.aio.Channel
    users: int = 0


class Transfer:
    """Moves bulk data for one node.

    Args:
        settings: where the server is.
        cache: where blobs are kept.
    """

    def __init__(self, settings: NodeSettings, cache: Cache) -> None:
        self._settings, self._cache = settings, cache
        self._line: _Line | None = None
        self._opened = asyncio.Event()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def use(self, credentials: Credentials) -> None:
        """The server is there: whoever waits tries again at once, from now on with these credentials."""
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

    async def submit(self, key: Key, answer: Answer) -> tuple[str, str]:
        """Deliver an answer, however often the connection breaks; verdict and reason of the server's receipt.

        Raises:
            FedscaleError: the server refuses to hear it.
            OSError: the answer cannot be read any more.
        """
        receipt = await self._patiently(partial(self._deliver, key, answer))
        if receipt.verdict not in VERDICTS:
            raise ProtocolError("the server did not say what became of an answer", where=key_text(key))
        return VERDICTS[receipt.verdict], receipt.reason

    def _turn(self, digest: str) -> asyncio.Lock:
        """Two tasks that want the same blob fetch it once."""
        return self._turns.setdefault(digest, asyncio.Lock())

    async def _fetch(self, digest: str, most: int, attempts: int = CORRUPT_ATTEMPTS) -> Path:
        """Fetch a blob; one that arrives corrupt is asked for again from its beginning, a few times."""
        with closing(await asyncio.to_thread(self._cache.part, digest, most)) as part:
            await self._patiently(partial(self._receive, digest, part))
            try:
                return await asyncio.to_thread(self._cache.keep, part, digest)
            except ProtocolError:
                if attempts <= 1:
                    raise
        return await self._fetch(digest, most, attempts - 1)

    async def _receive(self, digest: str, part: Part) -> None:
        """One attempt: everything from where the part ends."""
        async with self._channel() as channel:
            fetch: grpc.aio.UnaryStreamMultiCallable[pb.FetchRequest, bytes] = channel.unary_stream(FETCH, pb.FetchRequest.SerializeToString)
            call = fetch(pb.FetchRequest(digest=digest, offset=part.size))
            while isinstance(frame := await _soon(call.read()), bytes):
                await asyncio.to_thread(part.take, frame)

    async def _deliver(self, key: Key, answer: Answer) -> pb.Receipt:
        """One attempt: the whole answer and the server's receipt."""
        metadata: list[tuple[str, str | bytes]] = [(TASK_KEY, key_text(key)), (DIGEST_KEY, answer.digest), (SIZE_KEY, str(answer.size))]
        if answer.schema:
            metadata.append((SCHEMA_KEY, answer.schema.encode()))
        async with self._channel() as channel:
            # The server may answer before it has read everything: the round is closed, or it knows the answer already. grpc.aio
            # loses an early answer unless it is being read; so the one response of this call is read as a stream, from the start.
            submit: grpc.aio.StreamStreamMultiCallable[bytes, pb.Receipt] = channel.stream_stream(SUBMIT, None, pb.Receipt.FromString)
            call = submit(metadata=metadata)
            reading = asyncio.create_task(_first(call))
            try:
                with answer.path.open("rb") as file, suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    while not reading.done() and (frame := file.read(FRAME)):
                        await _soon(call.write(frame))
                    await _soon(call.done_writing())
                return await _soon(reading)
            finally:
                reading.cancel()
                call.cancel()

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works or can never work; a fresh connection ends the pause."""
        failures = 0
        while True:
            try:
                return await attempt()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                if not is_passing(error):
                    raise error_of(error, self._settings.address) from None
                seconds = pause(failures, error)
            failures += 1
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
