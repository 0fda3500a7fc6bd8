"""The record of a run: exact through JSON, strict on the way back, flat where people read it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import Cause, ConfigError, Failure
from fedscale.record import RoundRecord, RunRecord, closed_rounds, finals, metrics_csv, participants, summary
from tests.fedscale.sample_run import MEMORY, TIMEOUT, large_run, round_of, run_of

names = st.text(min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**60)
values = st.dictionaries(names, numbers, max_size=3)
failures = st.builds(Failure, st.sampled_from(Cause), names, names, names, names)
rounds = st.builds(
    RoundRecord,
    number=counts,
    phase=st.sampled_from(("train", "evaluate")),
    answered=st.lists(names, max_size=3).map(tuple),
    failures=st.dictionaries(names, failures, max_size=2),
    metrics=values,
    sites=st.dictionaries(names, values, max_size=2),
    weight=numbers,
    seconds=numbers,
    bytes_up=counts,
    bytes_down=counts,
)
json_values = st.recursive(
    st.none() | st.booleans() | counts | numbers | names, lambda v: st.lists(v, max_size=2) | st.dictionaries(names, v, max_size=2)
)
records = st.builds(
    RunRecord,
    run=names,
    name=names,
    status=names,
    reason=names,
    plan_toml=names,
    plan_hash=names,
    nodes=st.lists(names, max_size=3).map(tuple),
    rounds=st.lists(rounds, max_size=3).map(tuple),
    seconds=numbers,
    bytes_up=counts,
    bytes_down=counts,
    model_digest=names,
    extra=st.dictionaries(names, json_values, max_size=3),
)


def strict(text: str) -> Any:
    """JSON by the letter: NaN and Infinity are no values."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


# ------------------------------------------------------------------------------------------------------------------ JSON


@given(records)
def test_a_record_comes_back_equal(record: RunRecord) -> None:
    assert RunRecord.from_json(record.to_json()) == record


@given(records)
def test_json_is_canonical(record: RunRecord) -> None:
    assert RunRecord.from_json(record.to_json()).to_json() == record.to_json()


def test_json_is_one_strict_line() -> None:
    text = run_of(round_of(1, failures={"south": MEMORY})).to_json()
    assert "\n" not in text
    assert strict(text)["rounds"][0]["failures"]["south"] == {
        "cause": "memory",
        "what": "the worker ran out of memory",
        "where": "app.py:41",
        "hint": "lower train.batch_size",
        "traceback": "app.py:41 in forward",
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null_and_come_back_as_nan(bad: float) -> None:
    record = run_of(round_of(1, metrics={"loss": bad}, sites={"north": {"loss": bad}}), extra={"note": [bad, {"deep": bad}]})
    written = strict(record.to_json())
    assert written["rounds"][0]["metrics"] == {"loss": None}
    assert written["rounds"][0]["sites"] == {"north": {"loss": None}}
    assert written["extra"] == {"note": [None, {"deep": None}]}
    back = RunRecord.from_json(record.to_json()).rounds[0]
    assert math.isnan(back.metrics["loss"])
    assert math.isnan(back.sites["north"]["loss"])


def test_time_may_be_unknown() -> None:
    back = RunRecord.from_json(run_of(round_of(1, seconds=math.nan, weight=math.nan)).to_json())
    assert math.isnan(back.rounds[0].seconds)
    assert math.isnan(back.rounds[0].weight)
    assert math.isnan(back.seconds)


def test_numpy_numbers_are_numbers() -> None:
    metrics: dict[str, Any] = {"loss": np.float32(0.5), "auc": np.float64(0.75), "bad": np.float32("nan")}
    record = run_of(round_of(1, metrics=metrics, bytes_up=np.int64(5)), extra={"n": np.int32(3), "ok": True})
    written = strict(record.to_json())
    assert written["rounds"][0]["metrics"] == {"loss": 0.5, "auc": 0.75, "bad": None}
    assert written["rounds"][0]["bytes_up"] == 5
    assert written["extra"] == {"n": 3, "ok": True}


def test_a_whole_number_is_a_number_where_a_fraction_is_expected() -> None:
    text = run_of(round_of(1)).to_json().replace('"seconds":2.0', '"seconds":2')
    back = RunRecord.from_json(text)
    assert back.seconds == 2.0
    assert isinstance(back.seconds, float)


def test_what_is_not_json_is_refused_when_written() -> None:
    with pytest.raises(TypeError, match="complex"):
        run_of(extra={"z": 1j}).to_json()


def test_records_are_frozen() -> None:
    record = run_of(round_of(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.status = "failed"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.rounds[0].seconds = 0.0  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "{} {}", "[" * 100_000, '{"seconds": NaN}', "9" * 5000])
def test_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a run record is malformed"):
        RunRecord.from_json(text)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RunRecord)])
def test_every_field_of_a_run_is_needed_and_typed(field: str) -> None:
    written = strict(run_of(round_of(1)).to_json())
    missing = {key: value for key, value in written.items() if key != field}
    for text in (json.dumps(missing), json.dumps(written | {field: True})):
        with pytest.raises(ConfigError) as caught:
            RunRecord.from_json(text)
        assert caught.value.why == f"{field} is missing or of another type"
        assert "metrics.json" in caught.value.hint


@pytest.mark.parametrize("mark", [["wait"], ["wait", 0, 1], ["wait", True], ["wait", None], [1, 0.0], "ab"])
def test_marks_of_a_lane_are_a_stage_and_a_time(mark: object) -> None:
    text = run_of(round_of(1)).to_json()
    good, bad = (text.replace('"lanes":{}', json.dumps({"lanes": {"north": [each]}})[1:-1]) for each in (["wait", 2], mark))
    assert RunRecord.from_json(good).rounds[0].lanes == {"north": (("wait", 2.0),)}
    with pytest.raises(ConfigError, match="malformed"):
        RunRecord.from_json(bad)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RoundRecord) if field.name != "lanes"])
def test_every_field_of_a_round_is_needed_and_typed(field: str) -> None:
    written = strict(run_of(round_of(1)).to_json())
    row = written["rounds"][0]
    for rows in ([{key: value for key, value in row.items() if key != field}], [row | {field: True}]):
        with pytest.raises(ConfigError) as caught:
            RunRecord.from_json(json.dumps(written | {"rounds": rows}))
        assert caught.value.why == f"{field} is missing or of another type"


@pytest.mark.parametrize(
    "row",
    [
        {"phase": "test"},
        {"answered": ["north", 3]},
        {"metrics": {"loss": "0.5"}},
        {"metrics": {"loss": False}},
        {"metrics": {"loss": 10**400}},
        {"sites": {"north": [0.5]}},
        {"failures": {"north": "timeout"}},
        {"failures": {"north": {"cause": "boredom", "what": "", "where": "", "hint": "", "traceback": ""}}},
        {"failures": {"north": {"cause": "timeout", "what": "", "where": "", "hint": ""}}},
        {"bytes_up": 1.5},
        {"number": "1"},
    ],
    ids=lambda row: next(iter(row)),
)
def test_a_round_with_a_wrong_value_is_refused_without_repeating_it(row: dict[str, Any]) -> None:
    written = strict(run_of(round_of(1)).to_json())
    with pytest.raises(ConfigError) as caught:
        RunRecord.from_json(json.dumps(written | {"rounds": [written["rounds"][0] | row]}))
    assert "boredom" not in str(caught.value)
    assert "0.5" not in str(caught.value)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_does_not_know_are_refused(constant: str) -> None:
    with pytest.raises(ConfigError, match="ValueError"):
        RunRecord.from_json(run_of(round_of(1)).to_json().replace('"seconds":2.0', f'"seconds":{constant}'))


def test_a_round_that_is_no_object_is_refused() -> None:
    written = strict(run_of(round_of(1)).to_json())
    with pytest.raises(ConfigError, match="rounds is missing or of another type"):
        RunRecord.from_json(json.dumps(written | {"rounds": ["first"]}))


def test_a_field_of_a_later_version_is_passed_over() -> None:
    record = run_of(round_of(1))
    assert RunRecord.from_json(json.dumps(strict(record.to_json()) | {"colour": "blue"})) == record


# ----------------------------------------------------------------------------------------------------------- what it answers


def test_final_metrics_are_the_last_ones_and_evaluation_comes_first() -> None:
    record = run_of(
        round_of(1, metrics={"loss": 3.0}),
        round_of(1, "evaluate", metrics={"auc": 0.7, "brier": 0.2}),
        round_of(2, metrics={"loss": 2.0}),
        round_of(2, "evaluate", metrics={"auc": 0.8}),
    )
    assert list(finals(record).items()) == [(("evaluate", "auc"), 0.8), (("evaluate", "brier"), 0.2), (("train", "loss"), 2.0)]


def test_the_same_metric_of_both_phases_is_two_metrics() -> None:
    record = run_of(round_of(1, metrics={"loss": 3.0}), round_of(1, "evaluate", metrics={"loss": 4.0}))
    assert finals(record) == {("evaluate", "loss"): 4.0, ("train", "loss"): 3.0}


def test_a_run_without_rounds_has_no_metrics() -> None:
    assert finals(run_of()) == {}


def test_participants_are_the_known_nodes_then_whoever_appeared() -> None:
    record = run_of(
        round_of(1, answered=("east",), failures={"west": TIMEOUT}, sites={"south": {}, "late": {}}),
        nodes=("south", "north"),
    )
    assert participants(record) == ("south", "north", "east", "west", "late")


def test_summary_is_flat_and_complete() -> None:
    record = run_of(
        round_of(1, failures={"west": TIMEOUT, "east": MEMORY}),
        round_of(1, "evaluate", metrics={"auc": 0.875}),
        round_of(2, failures={"west": TIMEOUT}),
        reason="",
        extra={"privacy": {"epsilon": 3.5, "delta": 1e-5}},
    )
    assert summary(record) == {
        "run": "r-1",
        "name": "heart-risk",
        "status": "finished",
        "reason": "",
        "nodes": 4,
        "rounds": 2,
        "failures": 3,
        "seconds": 6.0,
        "bytes_up": 6_000_000,
        "bytes_down": 3_000_000,
        "plan_hash": "aa11",
        "model_digest": "bb22",
        "epsilon": 3.5,
        "evaluate.auc": 0.875,
        "train.loss": 0.5,
    }


def test_summary_of_a_diverged_run_holds_null() -> None:
    flat = summary(run_of(round_of(1, metrics={"loss": math.nan})))
    assert flat["train.loss"] is None
    assert "epsilon" not in flat
    json.dumps(flat, allow_nan=False)


@pytest.mark.parametrize("privacy", [None, "none", {"delta": 1e-5}, [3.5]])
def test_summary_without_an_epsilon_names_none(privacy: Any) -> None:
    assert "epsilon" not in summary(run_of(round_of(1), extra={"privacy": privacy}))


@given(records)
def test_summary_is_always_flat(record: RunRecord) -> None:
    flat = {key: value for key, value in summary(record).items() if key != "epsilon"}
    assert all(value is None or isinstance(value, str | int | float) for value in flat.values())


# ------------------------------------------------------------------------------------------------------------------- CSV


def test_csv_has_one_line_a_value() -> None:
    record = run_of(round_of(1, metrics={"loss": 0.5}, sites={"north": {"loss": 0.25}}), round_of(1, "evaluate", metrics={"auc": 0.1}, sites={}))
    assert metrics_csv(record) == "round,phase,site,metric,value\n1,train,,loss,0.5\n1,train,north,loss,0.25\n1,evaluate,,auc,0.1\n"


def test_csv_of_a_run_without_rounds_is_its_head() -> None:
    assert metrics_csv(run_of()) == "round,phase,site,metric,value\n"


def test_csv_leaves_out_what_is_not_finite() -> None:
    lines = metrics_csv(run_of(round_of(1, metrics={"a": math.nan, "b": math.inf}, sites={}))).splitlines()
    assert lines[1:] == ["1,train,,a,", "1,train,,b,"]


def test_csv_keeps_every_bit_of_a_number() -> None:
    value = 0.1 + 0.2
    (row,) = csv.DictReader(io.StringIO(metrics_csv(run_of(round_of(1, metrics={"m": value}, sites={})))))
    assert float(row["value"]) == value


def test_csv_of_numpy_numbers_holds_plain_numbers() -> None:
    assert metrics_csv(run_of(round_of(1, metrics={"m": np.float32(0.5)}, sites={}))).endswith(",m,0.5\n")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_csv_names_are_never_formulas(start: str) -> None:
    record = run_of(round_of(1, metrics={f"{start}SUM(A1)": 1.0}, sites={f"{start}cmd": {"loss": 1.0}}))
    rows = list(csv.DictReader(io.StringIO(metrics_csv(record), newline="")))
    assert rows[0]["metric"] == f"'{start}SUM(A1)"
    assert rows[1]["site"] == f"'{start}cmd"


def test_csv_names_cannot_break_a_line() -> None:
    record = run_of(round_of(1, metrics={"a\rb": 1.0, "\r=x": 2.0}, sites={"": {"loss": 3.0}}))
    rows = list(csv.DictReader(io.StringIO(metrics_csv(record), newline="")))
    assert [(row["metric"], row["value"]) for row in rows] == [("a b", "1.0"), (" =x", "2.0"), ("loss", "3.0")]


def test_csv_quotes_names_with_commas_and_lines() -> None:
    record = run_of(round_of(1, metrics={'a,"b"\nc': 1.0}, sites={}))
    (row,) = csv.DictReader(io.StringIO(metrics_csv(record), newline=""))
    assert row["metric"] == 'a,"b"\nc'


def test_csv_of_a_large_run_has_every_site() -> None:
    record = large_run(sites=30, rounds=10)
    rows = list(csv.DictReader(io.StringIO(metrics_csv(record))))
    assert len(rows) == sum(1 + len(row.sites) for row in record.rounds)
    assert {row["site"] for row in rows} >= {"", "site-029"}


def test_the_round_in_which_a_run_failed_is_no_closed_one() -> None:
    train, held_out = round_of(1), round_of(1, "evaluate")
    lost = round_of(2, answered=(), metrics={}, sites={}, failures={"north": TIMEOUT})
    assert closed_rounds(run_of(train, held_out, lost, status="failed")) == summary(run_of(train, lost, status="failed"))["rounds"] == 1
    assert summary(run_of(train, lost, status="failed"))["failures"] == 1
    assert closed_rounds(run_of(train, held_out, status="failed")) == 1
    assert closed_rounds(run_of(lost, status="failed")) == closed_rounds(run_of(status="failed")) == 0
    assert closed_rounds(run_of(train, lost, status="completed")) == 2
    assert closed_rounds(run_of(train, round_of(1, "evaluate", answered=(), metrics={}), status="failed")) == 1
