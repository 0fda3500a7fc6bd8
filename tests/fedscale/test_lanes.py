"""Lanes: what each site of a round does, from events and from what is seen in passing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.lanes import MOST_MARKS, STAGES, Lanes, Spent, retries, spans, spent

KINDS = ("answered", "failed", "lost", "returned", "spoke", "progress", "closed")


def lanes(*steps: tuple[Any, ...]) -> list[tuple[str, float]]:
    """The lane of ``north`` in a round that opened at 100: kinds of events, or stages that begin with a ``+``, and ``++`` once more."""
    made = Lanes.of(("north", "south"), 100.0)
    for name, at in steps:
        if name.startswith("+"):
            made.mark("north", name.lstrip("+"), at, again=name.startswith("++"))
        else:
            made.take(name, "north", at)
    assert made.marks["south"] == [("wait", 0.0)]
    return made.marks["north"]


def test_a_lane_follows_a_site_from_the_task_to_its_answer() -> None:
    seen = lanes(
        ("+download", 101.0), ("+train", 102.5), ("+mask", 106.0), ("+upload", 106.25), ("answered", 107.0), ("+unmask", 108.0), ("spoke", 109.0)
    )
    assert seen == [
        ("wait", 0.0),
        ("download", 1.0),
        ("train", 2.5),
        ("mask", 6.0),
        ("upload", 6.25),
        ("wait", 7.0),
        ("unmask", 8.0),
        ("wait", 9.0),
    ]


@pytest.mark.parametrize(
    ("steps", "stages"),
    [
        ([("+train", 101.0), ("lost", 102.0), ("returned", 103.0)], ["wait", "train", "away", "train"]),
        ([("lost", 102.0), ("returned", 103.0)], ["wait", "away", "wait"]),
        ([("+train", 101.0), ("lost", 102.0), ("failed", 103.0)], ["wait", "train", "away", "failed"]),
        ([("failed", 101.0), ("+train", 102.0), ("answered", 103.0)], ["wait", "failed"]),
        ([("+train", 101.0), ("+train", 102.0), ("progress", 103.0)], ["wait", "train"]),
        ([("+upload", 101.0), ("++upload", 102.0), ("++upload", 103.0)], ["wait", "upload", "upload", "upload"]),
        ([("spoke", 101.0), ("+train", 102.0), ("spoke", 103.0)], ["wait", "train"]),
    ],
)
def test_drop_outs_failures_and_retries(steps: list[tuple[str, float]], stages: list[str]) -> None:
    assert [stage for stage, _ in lanes(*steps)] == stages


def test_only_news_is_told() -> None:
    made = Lanes.of(("north",), 0.0)
    assert [made.mark("north", "train", 1.0), made.mark("north", "train", 2.0), made.mark("stranger", "train", 3.0)] == [True, False, False]
    assert made.drawn() == {"north": (("wait", 0.0), ("train", 1.0))}


def test_a_clock_that_is_set_back_does_not_turn_a_lane_around() -> None:
    assert lanes(("+train", 105.0), ("+upload", 90.0), ("answered", 106.0)) == [("wait", 0.0), ("train", 5.0), ("upload", 5.0), ("wait", 6.0)]


def test_a_site_that_changes_its_mind_without_end_is_not_written_down_without_end() -> None:
    flood = lanes(*((f"++{('train', 'mask')[at % 2]}", 101.0) for at in range(1000)), ("failed", 102.0))
    assert len(flood) == MOST_MARKS + 1
    assert flood[-1] == ("failed", 2.0), "that it failed is told all the same"


@given(st.lists(st.tuples(st.sampled_from([*KINDS, *(f"+{stage}" for stage in STAGES)]), st.floats(0, 1e6)), max_size=90))
def test_parts_cover_the_whole_round_without_gap_or_overlap(steps: list[tuple[str, float]]) -> None:
    lane = lanes(*steps)
    end = lane[-1][1] + 1.0
    parts = spans(lane, end)
    assert [at for _, at in lane] == sorted(at for _, at in lane)
    assert parts[0][1] == 0.0
    assert all(until == begin for (_, _, until), (_, begin, _) in itertools.pairwise(parts))
    assert parts[-1][2] == (lane[-1][1] if lane[-1][0] == "failed" else end)


def test_where_the_time_went_is_added_up() -> None:
    first = {
        "north": [("wait", 0.0), ("train", 1.0), ("upload", 4.0), ("upload", 5.0), ("wait", 6.0)],
        "south": [("wait", 0.0), ("away", 2.0), ("failed", 7.0)],
    }
    second = {"north": [("wait", 0.0), ("train", 0.5)]}
    found = spent([(first, 10.0), (second, 2.5)])
    nothing = dict.fromkeys(STAGES, 0.0)
    assert found == {
        "north": Spent(nothing | {"wait": 5.5, "train": 5.0, "upload": 2.0}, 1, 0, 0),
        "south": Spent(nothing | {"wait": 2.0, "away": 5.0}, 0, 1, 1),
    }
    assert retries(first["north"]) == 1
    assert spent([({"west": [("dreams", 0.0)]}, 3.0)])["west"].seconds == nothing | {"dreams": 3.0}, "a stage of a later release"
    assert (spans([], 3.0), spent([])) == ([], {})
