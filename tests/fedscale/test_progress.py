"""A bar with the time left on a terminal, and only its notes anywhere else."""

from __future__ import annotations

import re

import pytest

from fedscale import progress
from tests.command import Terminal, caught

PAINT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize(
    ("first", "now", "left"),
    [
        ((0.0, 0.0), (10.0, 0.5), 10.0),
        ((100.0, 0.5), (110.0, 0.75), 10.0),
        ((0.0, 0.0), (10.0, 1.0), 0.0),
        ((0.0, 0.2), (10.0, 0.2), None),
        ((0.0, 0.2), (10.0, 0.1), None),
        ((5.0, 0.1), (5.0, 0.4), None),
    ],
)
def test_the_time_left_follows_the_pace_so_far(first: tuple[float, float], now: tuple[float, float], left: float | None) -> None:
    assert progress.time_left(first, now) == (left if left is None else pytest.approx(left))


def test_off_a_terminal_a_bar_is_only_its_notes() -> None:
    with caught() as (out, err), progress.Bar("run") as bar:
        bar.update(0.5, "round 1", 0.0)
        bar.note("round 1 done", "red")
        bar.update(1.0, "round 2", 9.0)
    assert (out.getvalue(), err.getvalue()) == ("", "round 1 done\n")


def test_a_quiet_bar_says_nothing() -> None:
    with caught() as (out, err), progress.Bar("run", quiet=True) as bar:
        bar.note("round 1 done")
    assert (out.getvalue(), err.getvalue()) == ("", "")


def test_on_a_terminal_a_bar_shows_how_long_it_takes() -> None:
    with caught(Terminal(), Terminal()) as (out, err), progress.Bar("run") as bar:
        bar.update(0.25, "round 1", 100.0)
        bar.update(0.5, "round 2", 160.0)
        bar.note("half done")
    shown = PAINT.sub("", err.getvalue())
    assert "run: round 2" in shown
    assert "50%" in shown
    assert "0:02:00 left" in shown
    assert "half done" in shown
    assert out.getvalue() == ""
