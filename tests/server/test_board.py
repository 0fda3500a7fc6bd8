"""The lanes on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fedscale.lanes import STAGES
from fedscale_server.answers import Event
from fedscale_server.board import SIGNS, SITES, Board, signs
from fedscale_server.view import View

LEGEND = "\N{MIDDLE DOT} waits"


def event(kind: str, node: str, at: float, **detail: Any) -> Event:
    return Event(0, at, kind, node, "train", 1, detail)


def watched(*events: Event, now: float = 0.0) -> list[str]:
    """What a terminal of 68 columns shows, ``now`` seconds after the last event."""
    view, ticks = View(4), iter([0.0, *[50.0] * len(events), 50.0 + now])
    board = Board(view, lambda: next(ticks))
    for each in events:
        view.take(each)
        board.heard(each.at)
    screen = Console(file=io.StringIO(), width=68, force_terminal=False, legacy_windows=False)
    screen.print(board)
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


def opened(*sites: str) -> Event:
    return event("opened", "", 100.0, cohort=list(sites))


def test_nothing_is_drawn_before_the_first_round() -> None:
    assert watched(event("gathering", "", 1.0, needed=2, there=[])) == []


def test_a_lane_has_a_sign_for_each_stage_and_grows_between_events() -> None:
    told = [
        opened("north", "south"),
        event("stage", "north", 102.0, stage="download", again=False),
        event("stage", "north", 104.0, stage="train", again=False),
        event("failed", "south", 108.0, cause="code", what="ValueError"),
    ]
    north, south, legend = watched(*told)
    assert north == "north            " + 10 * SIGNS["wait"][0] + 10 * SIGNS["download"][0] + 20 * SIGNS["train"][0]
    assert south == "south            " + 39 * SIGNS["wait"][0] + "x"
    assert legend.startswith(LEGEND)
    assert "trains" in legend
    assert "masks" not in legend
    later = watched(*told, now=8.0)
    assert later[0].count(SIGNS["train"][0]) == 30, "sixteen seconds, of which it trains twelve"
    assert later[1] == "south            " + 20 * SIGNS["wait"][0] + "x"


def test_further_attempts_are_counted() -> None:
    told = [opened("north"), *(event("stage", "north", 101.0 + at, stage="upload", again=True) for at in range(3))]
    assert watched(*told)[0].endswith("  2 again")


def test_whoever_comes_later_is_told_the_lanes_at_once() -> None:
    known = Event(0, 100.0, "lanes", "", "train", 1, {"lanes": {"north": [["wait", 0.0], ["train", 5.0]]}})
    shown = watched(known, event("stage", "north", 110.0, stage="mask", again=False))
    assert shown[0] == "north            " + 20 * SIGNS["wait"][0] + 19 * SIGNS["train"][0] + SIGNS["mask"][0]


def test_of_many_sites_the_first_are_drawn_and_names_steer_no_terminal() -> None:
    shown = watched(opened("\x1b[31mevil", *(f"site-{at}" for at in range(SITES + 4))))
    assert len(shown) == SITES + 2
    assert shown[SITES] == "and 5 more sites"
    assert "\x1b" not in shown[0]


def test_every_stage_has_a_sign_of_its_own() -> None:
    assert set(SIGNS) == set(STAGES)
    assert len({sign for sign, _ in SIGNS.values()}) == len(STAGES)


@pytest.mark.parametrize(("now", "width", "shown"), [(0.0, 3, "mark"), (10.0, 1, "one")])
def test_a_lane_of_no_length_and_one_of_one_column_are_drawn(now: float, width: int, shown: str) -> None:
    drawn = signs([("wait", 0.0), ("train", 0.0)], now, width)
    assert len(drawn.plain) == width, shown
    assert SIGNS["train"][0] in drawn.plain
