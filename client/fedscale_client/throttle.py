"""How much of a site's line the node takes: a rate that it does not pass, and hours in which it moves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

LOOK_SECONDS = 60.0


class Throttle:
    """Shared by everything a node sends and receives in bulk.

    Args:
        rate: most bytes a second; 0 for as many as the line takes.
        quiet: ``HH:MM-HH:MM`` in the site's own time; empty for no quiet hours.
        now: the time of day.
    """

    def __init__(self, rate: int, quiet: str, now: Callable[[], datetime]) -> None:
        self._rate, self._quiet, self._now = rate, quiet, now
        self._free = 0.0

    async def take(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        await self.open()
        if self._rate:
            now = asyncio.get_running_loop().time()
            begin = max(self._free, now)
            self._free = begin + count / self._rate
            await asyncio.sleep(begin - now)

    async def open(self) -> None:
        """Wait for the end of the quiet hours; in short steps, for clocks are set and machines sleep."""
        while self._quiet:
            left = quiet_for(self._quiet, self._now().astimezone())
            if not left:
                return
            await asyncio.sleep(min(left, LOOK_SECONDS))


def quiet_for(hours: str, now: datetime) -> float:
    """Seconds until the quiet hours end; 0 outside of them.

    Args:
        hours: ``HH:MM-HH:MM``, over midnight too.
        now: the time of day where the hours are meant.
    """
    begin, end = (timedelta(hours=int(text[:2]), minutes=int(text[3:])) for text in hours.split("-"))
    day = timedelta(days=1)
    passed = timedelta(hours=now.hour, minutes=now.minute, seconds=now.second, microseconds=now.microsecond)
    quiet = (passed - begin) % day < (end - begin) % day
    return ((end - passed) % day).total_seconds() if quiet else 0.0
