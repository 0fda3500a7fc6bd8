"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.report.units import SIZES, TIMES, data_size, duration, number, ranges, shortened, unit_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.000"),
        (0.98765, "0.988"),
        (-0.5, "-0.500"),
        (9.9994, "9.999"),
        (10.0, "10"),
        (1234.56, "1235"),
        (0.00123456, "0.001235"),
        (1e-5, "1e-5"),
        (1.5e12, "1.5e+12"),
        (2e-7, "2e-7"),
        (3e8, "3e+8"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e300, 1e300))
def test_number_stays_close_to_the_value(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=6e-4, abs=6e-4 if 0.01 <= abs(value) < 10 else 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_400_000, "12.4 MB"), (5_000_000_000, "5 GB"), (2.5e13, "25 TB")],
)
def test_data_size(count: float, text: str) -> None:
    assert data_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.4211, "0.42 s"),
        (9.4, "9.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (360_000, "100 h 0 min"),
        (math.nan, "unknown"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_unit_is_the_largest_that_is_reached() -> None:
    assert unit_of(59.9, TIMES) == (1.0, "s")
    assert unit_of(60, TIMES) == (60.0, "min")
    assert unit_of(1e6, SIZES) == (1e6, "MB")
    assert unit_of(0, SIZES) == (1.0, "B")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([4], "4"),
        ([3, 1, 2], "1–3"),
        ([1, 3, 4, 5, 9, 9], "1, 3–5, 9"),
        ([1, 3, 5, 7, 9, 11], "1, 3, 5, 7, 9, 11"),
        ([1, 3, 5, 7, 9, 11, 13, 14, 15], "1, 3, 5, 7, 9, 11 and 3 more"),
    ],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@given(st.sets(st.integers(0, 60)), st.integers(1, 5))
def test_ranges_account_for_every_number(numbers: set[int], most: int) -> None:
    listed, _, rest = ranges(numbers, most).partition(" and ")
    spans = [tuple(map(int, span.split("–"))) for span in listed.split(", ") if span]
    covered = {value for span in spans for value in range(span[0], span[-1] + 1)}
    assert covered <= numbers
    assert len(spans) <= most
    assert len(numbers - covered) == int((rest or "0 more").split()[0])


@given(st.text("abcdefghij", max_size=40), st.integers(1, 40))
def test_a_name_is_shortened_in_its_middle(name: str, most: int) -> None:
    found = shortened(name, most)
    assert len(found) == min(len(name), most)
    head, dots, tail = found.partition("…")
    assert (name.startswith(head), name.endswith(tail), bool(dots)) == (True, True, len(name) > most)
