"""Named timers: each runs once, in place of an earlier one of the same name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """The timers of one run."""

    def __init__(self) -> None:
        self._armed: dict[str, asyncio.TimerHandle] = {}
        self._stopped = False

    def arm(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        """Run an action later; nothing once the timers are stopped."""
        if name in self._armed:
            self._armed.pop(name).cancel()
        if not self._stopped:
            self._armed[name] = asyncio.get_running_loop().call_later(seconds, action)

    def clear(self) -> None:
        """Forget all that are armed."""
        while self._armed:
            self._armed.popitem()[1].cancel()

    def stop(self) -> None:
        """Forget all, now and later."""
        self._stopped = True
        self.clear()
