"""Frames that are read from a stream while those before them are written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

# As much is read ahead for whoever has a turn: what comes while a thread is busy waits for it together, so it is woken once for all of it.
AHEAD = 1 << 20


class Inflow:
    """A stream of frames. Leave it with ``close``.

    Args:
        frames: the stream; one frame of it is read ahead, and more on somebody's turn.
    """

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        self._held: list[bytes] = []
        self._bytes, self._ahead = 0, 0
        self._came, self._room = asyncio.Event(), asyncio.Event()
        self._reading = asyncio.ensure_future(self._read(frames))

    def turn(self, *, ours: bool) -> None:
        """From now on read much ahead, or little."""
        self._ahead = AHEAD if ours else 0
        if self._bytes <= self._ahead:
            self._room.set()

    async def wait(self, seconds: float, either: Iterable[asyncio.Future[Any]] = ()) -> bool:
        """Wait for frames, for the end of the stream or for something else; whether there is something to take.

        Args:
            seconds: how long.
            either: what else ends the wait.
        """
        if not self._came.is_set():
            coming = asyncio.ensure_future(self._came.wait())
            await asyncio.wait({coming, *either}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            coming.cancel()
        return self._came.is_set()

    def take(self) -> list[bytes] | None:
        """All frames that have come since; ``None`` at the end of the stream. What broke it off is raised after all that came before."""
        taken, self._held, self._bytes = self._held, [], 0
        self._room.set()
        if not self._reading.done():
            self._came.clear()
            return taken
        return taken or self._reading.result()

    async def close(self) -> None:
        """Read no more."""
        self._reading.cancel()
        await asyncio.wait({self._reading})
        if not self._reading.cancelled():
            self._reading.exception()

    async def _read(self, frames: AsyncIterator[bytes]) -> None:
        try:
            async for frame in frames:
                self._held.append(frame)
                self._bytes += len(frame)
                self._came.set()
                if self._bytes > self._ahead:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._came.set()
