"""Spends in and out of JSON, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import ConfigError
from fedscale.privacy.events import WHOLE, Mechanism, Spend, from_json, read, to_json


def spends() -> st.SearchStrategy[Spend]:
    noise, steps = st.floats(0.001, 1e9), st.integers(1, 1_000_000_000)
    whole = st.builds(Spend, st.sampled_from([str(each) for each in WHOLE]), noise, st.just(1.0), steps)
    sampled = [str(each) for each in Mechanism if each not in WHOLE]
    return whole | st.builds(Spend, st.sampled_from(sampled), noise, st.floats(1e-9, 1.0), steps)


@given(st.lists(spends(), max_size=5))
def test_what_is_written_is_read_back(some: list[Spend]) -> None:
    assert read(json.dumps(to_json(some))) == tuple(some)


def test_rate_and_steps_may_be_left_out() -> None:
    assert from_json([{"mechanism": "laplace", "noise_multiplier": 2}]) == (Spend("laplace", 2.0, 1.0, 1),)
    assert to_json([Spend("skellam", 2.5, 0.5, 7)]) == [{"mechanism": "skellam", "noise_multiplier": 2.5, "sampling_rate": 0.5, "steps": 7}]


GOOD = {"mechanism": "poisson_subsampled_gaussian", "noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 3}


@pytest.mark.parametrize(
    ("change", "where", "told"),
    [
        ({"mechanism": "exponential"}, "[1].mechanism", "unknown mechanism"),
        ({"mechanism": None}, "[1].mechanism", "unknown mechanism"),
        ({"noise_multiplier": 0}, "[1].noise_multiplier", "0.001 to 1e+09"),
        ({"noise_multiplier": -1.0}, "[1].noise_multiplier", "must be a number"),
        ({"noise_multiplier": "1"}, "[1].noise_multiplier", "must be a number"),
        ({"noise_multiplier": True}, "[1].noise_multiplier", "must be a number"),
        ({"noise_multiplier": float("nan")}, "[1].noise_multiplier", "must be a number"),
        ({"noise_multiplier": float("inf")}, "[1].noise_multiplier", "must be a number"),
        ({"sampling_rate": 1.5}, "[1].sampling_rate", "0 to 1"),
        ({"sampling_rate": 0}, "[1].sampling_rate", "sampling_rate is 0"),
        ({"sampling_rate": None}, "[1].sampling_rate", "must be a number"),
        ({"steps": 0}, "[1].steps", "whole number"),
        ({"steps": 2.0}, "[1].steps", "whole number"),
        ({"steps": True}, "[1].steps", "whole number"),
        ({"steps": 10**10}, "[1].steps", "1 to 1000000000"),
        ({"mechanism": "gaussian"}, "[1].sampling_rate", "not amplified"),
        ({"mechanism": "tree_aggregation"}, "[1].sampling_rate", "not amplified"),
        ({"noise": 1.0}, "[1]", "'noise' is no key"),
    ],
)
def test_a_bad_event_is_named_by_index_and_key(change: dict[str, Any], where: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json([GOOD, GOOD | change])
    assert caught.value.where == where
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "where", "told"),
    [
        ({}, "", "must be a list"),
        ("[]", "", "must be a list"),
        ([GOOD, 3], "[1]", "must be an object"),
        ([{"noise_multiplier": 1.0}], "[0].mechanism", "'mechanism' is missing"),
        ([{"mechanism": "laplace"}], "[0].noise_multiplier", "'noise_multiplier' is missing"),
    ],
)
def test_a_malformed_list_says_where(rows: object, where: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(rows)
    assert caught.value.where == where
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "nonsense", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        read(text)
