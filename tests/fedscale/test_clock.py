from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from fedscale.clock import Clock, ManualClock, SystemClock

NOON = datetime(2031, 5, 4, 12, 0, tzinfo=UTC)


def test_a_manual_clock_stands_still_until_it_is_turned() -> None:
    clock = ManualClock(NOON)
    assert (clock.monotonic(), clock.now()) == (0.0, NOON)
    clock.advance(90.5)
    clock.advance(0.5)
    assert (clock.monotonic(), clock.now()) == (91.0, NOON + timedelta(seconds=91))


def test_a_manual_clock_shows_utc() -> None:
    clock = ManualClock(datetime(2031, 5, 4, 14, 0, tzinfo=timezone(timedelta(hours=2))))
    assert (clock.now(), clock.now().tzinfo) == (NOON, UTC)


def test_the_system_clock_never_goes_back() -> None:
    clock = SystemClock()
    times = [clock.monotonic() for _ in range(100)]
    assert times == sorted(times)


def test_the_system_clock_shows_utc() -> None:
    before, shown, after = datetime.now(UTC), SystemClock().now(), datetime.now(UTC)
    assert before <= shown <= after
    assert shown.tzinfo is UTC


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock(NOON)])
def test_both_are_clocks(clock: Clock) -> None:
    assert clock.now().tzinfo is UTC
    assert clock.monotonic() >= 0.0
