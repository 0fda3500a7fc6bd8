"""A site's line: a rate that is kept over time, and hours in which nothing moves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from fedscale.errors import ConfigError
from fedscale_client.home import NodeSettings, parse
from fedscale_client.throttle import Throttle, quiet_for

NODE = {"name": "mercy", "federation": "f", "project": "p", "address": "localhost:1"}


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-01T{text}").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("hours", "now", "left"),
    [
        ("08:00-18:00", "07:59:59", 0),
        ("08:00-18:00", "08:00", 10 * 3600),
        ("08:00-18:00", "17:59:30", 30),
        ("08:00-18:00", "18:00", 0),
        ("22:30-06:15", "22:29", 0),
        ("22:30-06:15", "22:30", 7.75 * 3600),
        ("22:30-06:15", "00:00", 6.25 * 3600),
        ("22:30-06:15", "06:14:59.5", 0.5),
        ("22:30-06:15", "06:15", 0),
        ("12:00-12:00", "12:00", 0),
    ],
)
def test_quiet_hours(hours: str, now: str, left: float) -> None:
    assert quiet_for(hours, at(now)) == left


def test_every_minute_of_a_day_is_quiet_or_not_as_a_clock_says() -> None:
    for minute in range(24 * 60):
        now = at("00:00") + timedelta(minutes=minute)
        assert (quiet_for("21:00-05:00", now) > 0) == (now.hour >= 21 or now.hour < 5)


async def test_a_rate_is_kept_by_all_transfers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def noted(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("asyncio.sleep", noted)
    shared = Throttle(1000, "", lambda: at("12:00"))
    await asyncio.gather(*(shared.take(5000) for _ in range(4)))
    assert slept == pytest.approx([0, 5, 10, 15], abs=4)
    assert slept == sorted(slept)


async def test_without_limits_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: float) -> None:
        raise AssertionError("it waited")

    monkeypatch.setattr("asyncio.sleep", never)
    loud = datetime(2026, 3, 1, 12).astimezone()
    free = Throttle(0, "08:00-09:00", lambda: loud)
    for _ in range(3):
        await free.take(1 << 30)
    assert free._free == 0.0


async def test_quiet_hours_are_waited_out_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 1, 17, 58, 30).astimezone()  # here, as it was then: the clocks may have been changed since
    slept: list[float] = []

    async def passing(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += timedelta(seconds=seconds)

    monkeypatch.setattr("asyncio.sleep", passing)
    await Throttle(0, "08:00-18:00", lambda: now).take(1)
    assert slept == [60.0, 30.0]


@pytest.mark.parametrize("hours", ["8-18", "08:00-24:00", "08:60-09:00", "08:00", "08:00-18:00-20:00", "always"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ConfigError, match="quiet_hours"):
        parse(NodeSettings, {**NODE, "quiet_hours": hours}, "node.toml")


def test_limits_are_settings_of_the_node() -> None:
    read = parse(NodeSettings, {**NODE, "quiet_hours": "22:00-06:00", "rate_limit": 500_000}, "node.toml")
    assert (read.quiet_hours, read.rate_limit) == ("22:00-06:00", 500_000)
    with pytest.raises(ConfigError, match="rate_limit"):
        parse(NodeSettings, {**NODE, "rate_limit": -1}, "node.toml")
