"""Who may begin to send: an upload that must wait for its turn waits before its first frame, and the server holds nothing of it.

A node asks how much of its answer is here before it sends the rest; it is told so when there is room.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

# So long in all others wait for a sender that is on its way, or pauses, until it flows again: those that are far away or slow come together.
PATIENCE_SECONDS = 0.25
# Whoever has waited for so long may begin in any case, well before it takes the server for dead.
MOST_SECONDS = 300.0
Who: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Guest:
    """Who is inside: for how long it may yet be waited for, since when it is, and what ends that."""

    patience: float
    since: float
    leaving: asyncio.TimerHandle


class Doorway:
    """Lets uploads in, in the order in which they ask.

    Args:
        room: how many may be inside: on their way, or there without a pause.
    """

    def __init__(self, room: int) -> None:
        self._room = asyncio.Semaphore(room)
        self._inside: dict[Who, _Guest] = {}

    async def enter(self, who: Who) -> None:
        """Wait until there is room; ``who`` is on its way when this returns."""
        if who in self._inside:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(MOST_SECONDS):
                await self._room.acquire()
            if who in self._inside:
                self._room.release()
            else:
                self._expect(who, PATIENCE_SECONDS)

    def awaited(self, who: Who, *, flowed: bool) -> None:
        """The server waits for it; whether it ``flowed`` until now."""
        if guest := self._inside.get(who):
            guest.leaving.cancel()
            self._expect(who, PATIENCE_SECONDS if flowed else guest.patience)

    def came(self, who: Who) -> None:
        """It waits for the server."""
        if guest := self._inside.get(who):
            guest.leaving.cancel()
            guest.patience -= asyncio.get_running_loop().time() - guest.since

    def leave(self, who: Who) -> None:
        """It is through, or out of the way."""
        if guest := self._inside.pop(who, None):
            guest.leaving.cancel()
            self._room.release()

    def _expect(self, who: Who, patience: float) -> None:
        loop = asyncio.get_running_loop()
        self._inside[who] = _Guest(patience, loop.time(), loop.call_later(patience, self.leave, who))
