"""The clock as a port: the real one, and one that tests turn by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds that never go back; for durations and deadlines."""

    def now(self) -> datetime:
        """The time of day in UTC; for certificates and what people read."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """``time.monotonic``."""
        return time.monotonic()

    def now(self) -> datetime:
        """The time of day in UTC."""
        return datetime.now(UTC)


class ManualClock:
    """A clock that stands still until it is turned.

    Args:
        start: the time of day it shows first.
    """

    def __init__(self, start: datetime) -> None:
        self._start, self._passed = start, 0.0

    def advance(self, seconds: float) -> None:
        """Turn it on by so many seconds."""
        self._passed += seconds

    def monotonic(self) -> float:
        """Seconds turned so far."""
        return self._passed

    def now(self) -> datetime:
        """Start plus what was turned."""
        return datetime.fromtimestamp(self._start.timestamp() + self._passed, UTC)
