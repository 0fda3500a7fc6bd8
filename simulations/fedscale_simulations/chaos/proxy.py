"""A TCP proxy that breaks what passes through it: a network as bad as one likes, on machines where the system offers none.

It sits between nodes and their coordinator and knows nothing of TLS or gRPC: it sees bytes. ``Weather`` says how they
travel and can change at any moment; ``reset``, ``half_close`` and ``partition`` hit the connections that are open.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

BLOCK = 16 << 10
CONNECT_SECONDS = 10.0
LINGER = struct.pack("ii", 1, 0)  # close() sends a reset instead of the rest: socket(7), SO_LINGER


@dataclass(frozen=True, slots=True)
class Weather:
    """How bytes travel.

    Args:
        latency: seconds that each block is late, each way.
        bandwidth: bytes a second, each way and connection; 0 for no limit.
        blackhole: nothing passes, nothing is refused, and new connections hear nothing.
        flip: every how many bytes one bit is flipped; 0 for never.
    """

    latency: float = 0.0
    bandwidth: float = 0.0
    blackhole: bool = False
    flip: int = 0


CALM = Weather()


@dataclass(eq=False)
class _Link:
    """A connection of a node and the one to the coordinator that belongs to it."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter

    def close(self) -> None:
        """Let go of both ends."""
        for end in (self.near, self.far):
            end.close()


@dataclass
class Passed:
    """What has passed, and what was broken on the way."""

    up: int = 0
    down: int = 0
    flipped: int = 0
    connections: int = 0

    def count(self, size: int, *, up: bool) -> None:
        """Add what has passed in one direction."""
        if up:
            self.up += size
        else:
            self.down += size


@dataclass(eq=False)
class Proxy:
    """One port in front of another.

    Args:
        port: the port of this machine that is behind it.
        weather: how bytes travel at first.
    """

    port: int
    weather: Weather = CALM
    passed: Passed = field(default_factory=Passed)
    _links: set[_Link] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _clear: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Listen on a free port of this machine, which is yielded."""
        self.change(self.weather)
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=BLOCK)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self._clear.set()
            self.reset()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=CONNECT_SECONDS)
            await server.wait_closed()

    def change(self, weather: Weather) -> None:
        """From now on bytes travel otherwise."""
        self.weather = weather
        if weather.blackhole:
            self._clear.clear()
        else:
            self._clear.set()

    def partition(self, *, cut: bool = True) -> None:
        """Nothing passes any more, or again."""
        self.change(replace(self.weather, blackhole=cut))

    def reset(self) -> int:
        """Reset every connection; returns how many there were."""
        links = list(self._links)
        for link in links:
            for end in (link.near, link.far):
                with suppress(OSError):
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
                end.transport.abort()
        return len(links)

    def half_close(self) -> int:
        """Say to every node that the coordinator will say no more, while what the node says still arrives; returns how many there were."""
        links = list(self._links)
        for link in links:
            with suppress(OSError, RuntimeError):
                link.near.write_eof()
        return len(links)

    def _accepted(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """Carry a new connection."""
        task = asyncio.get_running_loop().create_task(self._accept(reader, near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to the end of both directions."""
        await self._clear.wait()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                answers, far = await asyncio.open_connection("127.0.0.1", self.port, limit=BLOCK)
        except (OSError, TimeoutError):
            near.close()
            return
        link = _Link(near, far)
        self._links.add(link)
        self.passed.connections += 1
        try:
            await asyncio.gather(self._carry(reader, far, link), self._carry(answers, near, link))
        finally:
            self._links.discard(link)
            link.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link) -> None:
        """One direction of a connection; when it breaks, so does the other."""
        with suppress(OSError, RuntimeError):
            while block := await reader.read(BLOCK):
                await self._travel(len(block))
                writer.write(self._spoil(block))
                await writer.drain()
                self.passed.count(len(block), up=writer is link.far)
            writer.write_eof()
            return
        link.close()

    async def _travel(self, size: int) -> None:
        """The time that a block takes."""
        weather = self.weather
        seconds = weather.latency + (size / weather.bandwidth if weather.bandwidth else 0.0)
        if seconds:
            await asyncio.sleep(seconds)
        await self._clear.wait()

    def _spoil(self, block: bytes) -> bytes:
        """The block with one bit flipped wherever the next flip is due."""
        every, begun = self.weather.flip, self.passed.up + self.passed.down
        if not every or (begun + len(block)) // every == begun // every:
            return block
        spoiled = bytearray(block)
        spoiled[every - begun % every - 1] ^= 1 << (self.passed.flipped % 8)
        self.passed.flipped += 1
        return bytes(spoiled)
