"""Frames that are read from a stream by the event loop while a thread deals with those before them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

# So much is read ahead for whoever has a turn, and a thread that waits is woken for half of it: to be woken for each frame costs as much as a frame.
AHEAD = 1 << 20
ENOUGH = AHEAD // 2


class Inflow:
    """A stream of frames. Made and left, with ``close``, in the event loop; ``take`` is for any thread.

    Args:
        frames: the stream; one frame of it is read ahead, and more on somebody's turn.
    """

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []
        self._bytes, self._ahead, self._over = 0, 0, False
        self._changed = threading.Condition()
        self._came, self._room = asyncio.Event(), asyncio.Event()
        self._reading = asyncio.ensure_future(self._read(frames))
        self._reading.add_done_callback(self._ended)

    def turn(self, *, ours: bool) -> None:
        """From now on read much ahead, or little."""
        self._ahead = AHEAD if ours else 0
        self._room.set()

    async def wait(self, seconds: float, either: Iterable[asyncio.Future[Any]] = ()) -> bool:
        """Wait for frames, for the end of the stream or for something else; whether there is something to take.

        Args:
            seconds: how long.
            either: what else ends the wait.
        """
        if not self._here():
            self._came.clear()
            coming = asyncio.ensure_future(self._came.wait())
            await asyncio.wait({coming, *either}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            coming.cancel()
        return self._here()

    def take(self, seconds: float = 0.0) -> list[bytes] | None:
        """All frames that have come since; ``None`` at the end of the stream. What broke it off is raised after all that came before.

        Args:
            seconds: how long to wait until they are worth the while.
        """
        with self._changed:
            if seconds:
                self._changed.wait_for(self._enough, seconds)
            taken, self._held = self._held, []
            full, self._bytes = self._bytes > self._ahead, 0
            over = self._over  # seen with the frames: the last ones may come right behind
        if full:
            self._loop.call_soon_threadsafe(self._room.set)
        return taken if taken or not over else self._reading.result()

    async def close(self) -> None:
        """Read no more."""
        self._reading.cancel()
        await asyncio.wait({self._reading})
        if not self._reading.cancelled():
            self._reading.exception()

    def _here(self) -> bool:
        """Whether there is something to take."""
        return bool(self._held) or self._over

    def _enough(self) -> bool:
        """Whether a thread is to wait no longer."""
        return self._bytes > min(self._ahead, ENOUGH - 1) or self._over

    def _ended(self, _: asyncio.Future[None]) -> None:
        """Nothing more comes."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._came.set()

    async def _read(self, frames: AsyncIterator[bytes]) -> None:
        async for frame in frames:
            with self._changed:
                self._held.append(frame)
                self._bytes += len(frame)
                if self._enough():
                    self._changed.notify()
            self._came.set()
            while self._bytes > self._ahead:
                self._room.clear()
                await self._room.wait()
