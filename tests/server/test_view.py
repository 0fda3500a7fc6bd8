"""What a person is told of a run, from its events alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale_server.answers import Event
from fedscale_server.view import BAD, GOOD, Line, View


def event(kind: str, node: str = "", phase: str = "train", number: int = 2, **detail: Any) -> Event:
    return Event(1, 0.0, kind, node, phase, number, detail)


def opened(phase: str = "train", number: int = 2, *cohort: str) -> Event:
    return event("opened", phase=phase, number=number, cohort=list(cohort or ("north", "south")), target=2, quorum=1)


def told(view: View, *events: Event) -> list[str]:
    return [line.text for event in events for line in view.take(event)]


def test_before_the_first_round_a_view_says_what_it_waits_for() -> None:
    view = View(4)
    assert (view.text, view.fraction) == ("starting", 0.0)
    assert view.take(event("gathering", needed=3, there=["north"])) == []
    assert (view.text, view.fraction) == ("waiting for nodes, 1 of 3 there", 0.0)
    assert view.take(event("roster", phase="init", number=0)) == []
    assert (view.text, view.fraction) == ("waiting for the first model", 0.0)


def test_the_fraction_follows_the_sites_and_never_goes_back() -> None:
    view, seen = View(4), []
    course = [
        opened("train", 1),
        event("progress", "north", fraction=0.5),
        event("answered", "north", bytes=4),
        event("progress", "north", fraction=0.1),
        event("progress", "stranger", fraction=1.0),
        event("answered", "south", bytes=4),
        opened("evaluate", 1),
        event("answered", "north", bytes=4),
        event("answered", "south", bytes=4),
        opened("train", 2),
    ]
    for step in course:
        view.take(step)
        seen.append(view.fraction)
    assert seen == sorted(seen)
    assert seen[1] == pytest.approx(0.25 * 0.75 / 4)
    assert seen[5] == pytest.approx(0.75 / 4)
    assert seen[-1] == pytest.approx(1 / 4)


def test_a_led_run_is_as_far_as_its_leader_asks() -> None:
    view = View(4)
    told(view, event("roster", phase="init", number=0), event("posted", "north", number=1), event("posted", "south", number=1))
    assert view.text == "train 1/4, 0 of 2 nodes"
    assert told(view, event("answered", "north", number=1), event("failed", "south", number=1, cause="code")) != []
    assert view.text == "train 1/4, 1 of 2 nodes"
    view.take(event("posted", "north", phase="evaluate", number=1))
    assert view.text == "evaluate 1/4, 0 of 1 nodes"


def test_a_node_that_trains_to_the_end_has_not_answered_yet() -> None:
    view = View(4)
    told(view, opened(), event("progress", "north", fraction=1.0))
    assert view.text == "train 2/4, 0 of 2 nodes"
    told(view, event("answered", "north"))
    assert view.text == "train 2/4, 1 of 2 nodes"


def test_failures_are_named_as_they_happen() -> None:
    view = View(4)
    view.take(opened())
    (line,) = view.take(event("failed", "north", cause="data", what="no column 'age'", where="default", hint="add it", traceback="..."))
    assert line == Line("train 2/4       north failed: data: default: no column 'age'; add it", BAD)
    assert told(view, event("lost", "south"), event("returned", "south")) == [
        "train 2/4       south: the connection broke",
        "train 2/4       south is back",
    ]


def test_a_closed_round_is_one_line_and_names_whoever_was_silent() -> None:
    view = View(4)
    slow: dict[str, Any] = {"cause": "timeout", "what": "no answer within 5 s"}
    bad: dict[str, Any] = {"cause": "code", "what": "ValueError"}
    told(view, opened("train", 2, "a", "b", "c"), event("failed", "b", **bad))
    lines = told(
        view, event("closed", answered=["a"], failures={"b": bad, "c": slow}, metrics={"loss": 0.5}, seconds=5.0, bytes_up=10, bytes_down=20)
    )
    assert lines == ["train 2/4       c failed: timeout: no answer within 5 s", "train 2/4       1 of 3 nodes  loss 0.500  5 s  30 B"]
    told(view, opened("train", 3, "a", "b", "c"))
    again = told(view, event("closed", number=3, answered=["a", "c"], failures={"b": bad}))
    assert again[0] == "train 3/4       b failed: code: ValueError"


@pytest.mark.parametrize(
    ("detail", "line"),
    [
        ({"status": "completed", "reason": ""}, Line("completed", GOOD)),
        ({"status": "failed", "reason": "nobody was there"}, Line("failed: nobody was there", BAD)),
        ({"status": "stopped", "reason": "enough"}, Line("stopped: enough", BAD)),
        ({}, Line("over", BAD)),
    ],
)
def test_the_end_is_told_with_its_reason(detail: dict[str, Any], line: Line) -> None:
    assert View(4).take(event("finished", **detail)) == [line]


@pytest.mark.parametrize(
    ("kind", "text"), [("initialized", "north made the first model"), ("pause", "the run is paused"), ("resume", "the run is resumed")]
)
def test_steps_worth_a_line(kind: str, text: str) -> None:
    assert told(View(4), event(kind, "north")) == [text]


@pytest.mark.parametrize("kind", ["roster", "fired", "accepted", "started", "something new"])
def test_other_events_are_passed_over(kind: str) -> None:
    view = View(4)
    assert told(view, opened(), event(kind, "north")) == []
    assert view.text == "train 2/4, 0 of 2 nodes"


ENDS = ["lost", "returned", "closed", "pause", "finished", "new"]
KINDS = ["gathering", "roster", "opened", "progress", "answered", "posted", "initialized", "failed", *ENDS]
NODES = st.sampled_from(["north", "south", "west", ""])
DETAILS = st.fixed_dictionaries(
    {},
    optional={
        "cohort": st.lists(NODES, max_size=3),
        "there": st.lists(NODES, max_size=3),
        "answered": st.lists(NODES, max_size=3),
        "fraction": st.floats(0, 2),
        "failures": st.dictionaries(NODES, st.dictionaries(st.sampled_from(["cause", "what", "where", "hint"]), st.text(max_size=5)), max_size=2),
        "metrics": st.dictionaries(st.sampled_from(["loss", "auc"]), st.floats(allow_nan=True), max_size=2),
        "status": st.sampled_from(["completed", "failed", "stopped"]),
    },
)
EVENTS = st.builds(
    Event,
    st.integers(0, 9),
    st.floats(0, 9),
    st.sampled_from(KINDS),
    NODES,
    st.sampled_from(["init", "train", "evaluate"]),
    st.integers(0, 6),
    DETAILS,
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=20), st.integers(0, 5))
def test_whatever_happens_a_view_has_something_to_show(course: list[Event], rounds: int) -> None:
    view = View(rounds)
    for step in course:
        assert all(line.text for line in view.take(step))
        assert 0 <= view.fraction <= 1
        assert view.text
