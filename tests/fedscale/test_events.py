from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import Cause, Failure, ProtocolError
from fedscale.events import (
    EVENTS,
    Answered,
    Event,
    Failed,
    Fired,
    Initialized,
    Lost,
    Outcome,
    Pause,
    Resume,
    Returned,
    Roster,
    Stop,
    failure_of,
    from_row,
    model_bytes,
    outcome_of,
    schema_of,
    to_row,
)
from tests.fedscale.world import BROKEN, SCHEMA, vector

texts = st.text(max_size=20)
failures = st.builds(Failure, st.sampled_from(Cause), texts, texts, texts, texts)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Roster, st.lists(texts, max_size=5).map(tuple)),
    st.builds(Initialized, texts, texts, texts),
    st.builds(Answered, texts, texts),
    st.builds(Failed, texts, failures),
    st.builds(Lost, texts),
    st.builds(Returned, texts),
    st.builds(Fired, texts),
    st.builds(Stop, texts),
    st.builds(Pause),
    st.builds(Resume),
)


@given(events)
def test_every_event_survives_the_journal(event: Event) -> None:
    kind, row = to_row(event)
    back = from_row(kind, json.loads(json.dumps(row)))
    assert back == event
    assert type(back) is type(event)


def test_every_event_has_a_kind() -> None:
    assert set(EVENTS.values()) == set(get_args(Event))
    assert all(kind == event.__name__.lower() for kind, event in EVENTS.items())


def test_rows_are_what_a_reader_expects() -> None:
    assert to_row(Roster(("ada", "ben"))) == ("roster", {"nodes": ("ada", "ben")})
    assert to_row(Pause()) == ("pause", {})
    failure = {"cause": "code", "what": BROKEN.what, "where": "app.py:7", "hint": BROKEN.hint, "traceback": ""}
    assert to_row(Failed("ada", BROKEN)) == ("failed", {"node": "ada", "failure": failure})


def test_payloads_stay_out_of_the_journal() -> None:
    """And out of comparison and print: two events are equal by digest."""
    answered = Answered("ada", "d1", np.zeros(3, np.uint32))
    initialized = Initialized("ada", SCHEMA.to_json(), "d2", vector(1, 2))
    assert to_row(answered) == ("answered", {"node": "ada", "digest": "d1"})
    assert set(to_row(initialized)[1]) == {"node", "schema", "digest"}
    assert answered == replace(answered, words=np.ones(3, np.uint32)) != replace(answered, digest="d9")
    assert "words" not in repr(answered)
    assert schema_of(initialized) == SCHEMA


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("unheard", {}),
        ("lost", {}),
        ("lost", {"node": "a", "more": 1}),
        ("roster", {}),
        ("roster", {"nodes": None}),
        ("failed", {"node": "a"}),
        ("failed", {"node": "a", "failure": None}),
        ("failed", {"node": "a", "failure": {}}),
        ("failed", {"node": "a", "failure": {"cause": "bad luck", "what": ""}}),
        ("failed", {"node": "a", "failure": {"cause": "code", "what": "", "who": ""}}),
        ("pause", {"node": "a"}),
        ("Lost", {"node": "a"}),
    ],
)
def test_rows_that_cannot_be_read(kind: str, row: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=f"^the journal holds an event '{kind}' that cannot be read"):
        from_row(kind, row)


def test_reading_does_not_change_the_row() -> None:
    row = {"node": "ada", "failure": {"cause": "code", "what": "x"}}
    assert from_row("failed", row) == Failed("ada", Failure(Cause.CODE, "x"))
    assert row == {"node": "ada", "failure": {"cause": "code", "what": "x"}}


@given(failures)
def test_failures_survive_json(failure: Failure) -> None:
    assert failure_of(json.loads(json.dumps(asdict(failure)))) == failure


numbers = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.dictionaries(texts, numbers, max_size=3)
outcomes = st.builds(
    Outcome,
    st.integers(1, 99),
    st.sampled_from(["train", "evaluate"]),
    st.lists(texts, max_size=3).map(tuple),
    st.dictionaries(texts, failures, max_size=2),
    metrics,
    st.dictionaries(texts, metrics, max_size=2),
    numbers,
)


@given(outcomes)
def test_outcomes_survive_json(outcome: Outcome) -> None:
    assert outcome_of(json.loads(json.dumps(asdict(outcome)))) == outcome


def test_an_outcome_has_every_field() -> None:
    assert [f.name for f in fields(Outcome)] == ["number", "phase", "answered", "failures", "metrics", "sites", "weight"]


def test_models_are_stored_little_endian() -> None:
    assert model_bytes(vector(1.0, -2.0)) == bytes.fromhex("0000803f000000c0")
    assert model_bytes(vector(1.0, 9.0, -2.0)[::2]) == bytes.fromhex("0000803f000000c0")
    assert model_bytes(vector(1.0).astype(">f4")) == bytes.fromhex("0000803f")
