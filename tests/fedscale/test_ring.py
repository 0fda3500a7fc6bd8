from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import PlanError, UpdateRejected
from fedscale.ring import BLOCK, HEADROOM_BITS, LIMBS, LIMIT, MOST_TERMS, WORD, Extremes, FixedPoint, Words, add, from_limbs, to_limbs
from fedscale.vector import Vector

bounds = st.floats(2.0**-10, 2.0**16)
seeds = st.integers(0, 2**32 - 1)


def encoded(fmt: FixedPoint, values: Vector) -> Words:
    words = np.empty(len(values), WORD)
    fmt.encode(values, words)
    return words


def limbs(*numbers: float, terms: int = 1) -> Words:
    words = np.empty(LIMBS * len(numbers), WORD)
    to_limbs(numbers, words, terms)
    return words


@given(st.integers(1, 1 << 17), bounds)
def test_the_headroom_is_proved(terms: int, bound: float) -> None:
    fmt = FixedPoint.for_sum(terms, bound)
    largest = terms * bound * 2.0**fmt.exponent
    assert largest * (1 + 1e-12) > 2.0 ** (HEADROOM_BITS - 1)
    assert largest <= 2.0**HEADROOM_BITS


@pytest.mark.parametrize("terms", [1, 2, 3, 1000, 1 << 17])
def test_a_sum_of_extremes_does_not_wrap(terms: int) -> None:
    fmt = FixedPoint.for_sum(terms, 8.0)
    words = encoded(fmt, np.array([8.0, -8.0], np.float32))
    total = (words.astype(np.int64) * terms).astype(WORD)
    assert fmt.decode(total, terms).tolist() == [8.0, -8.0]


@pytest.mark.parametrize(
    ("terms", "bound", "message"),
    [
        (0, 8.0, "no ring format for 0 terms within 8.0"),
        (MOST_TERMS + 1, 8.0, f"no ring format for {MOST_TERMS + 1} terms within 8.0"),
        (1, 0.0, "no ring format for 1 terms within 0.0"),
        (1, -1.0, "no ring format for 1 terms within -1.0"),
        (1, float("nan"), "no ring format for 1 terms within nan"),
        (1, float("inf"), "no ring format for 1 terms within inf"),
        (MOST_TERMS, 8.0, f"the ring is too short for {MOST_TERMS} nodes"),
    ],
)
def test_impossible_formats(terms: int, bound: float, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        FixedPoint.for_sum(terms, bound)
    assert caught.value.what == message


@given(seeds, st.integers(1, 64), bounds)
def test_values_survive_to_half_a_step(seed: int, terms: int, bound: float) -> None:
    fmt = FixedPoint.for_sum(terms, bound)
    values = np.random.default_rng(seed).uniform(-bound, bound, 50).astype(np.float32) * np.float32(0.999)
    assert np.abs(fmt.decode(encoded(fmt, values)).astype(np.float64) - values).max() <= 0.5 * 2.0**-fmt.exponent + bound * 2.0**-23


@given(seeds, st.integers(2, 9))
def test_a_sum_is_within_half_a_step_a_term(seed: int, terms: int) -> None:
    fmt = FixedPoint.for_sum(terms, 1.0)
    values = np.random.default_rng(seed).uniform(-1, 1, (terms, 20)).astype(np.float32)
    total = np.zeros(20, WORD)
    for row in values:
        add(total, encoded(fmt, row))
    exact = values.astype(np.float64).sum(axis=0)
    assert np.abs(fmt.decode(total) - exact).max() <= terms * 0.5 * 2.0**-fmt.exponent + 2.0**-24 * np.abs(exact).max()


def test_rounding_is_half_to_even() -> None:
    fmt = FixedPoint(0, 8.0)
    assert encoded(fmt, np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)).view(np.int32).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("at", [0, 3, BLOCK - 1, BLOCK, BLOCK + 5])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.nan, "a value is not finite"),
        (np.inf, "a value is not finite"),
        (-np.inf, "a value is not finite"),
        (8.001, "a value is beyond the agreed range"),
        (-8.001, "a value is beyond the agreed range"),
        (3e38, "a value is beyond the agreed range"),
    ],
)
def test_nothing_is_clipped_silently(value: float, what: str, at: int) -> None:
    values = np.zeros(BLOCK + 6, np.float32)
    values[at] = value
    with pytest.raises(UpdateRejected) as caught:
        encoded(FixedPoint.for_sum(4, 8.0), values)
    assert (caught.value.what, caught.value.where) == (what, f"coordinate {at}")
    assert caught.value.hint == "lower the learning rate or raise aggregate.bound"


def test_the_bound_itself_passes() -> None:
    fmt = FixedPoint.for_sum(3, 8.0)
    values = np.array([8.0, -8.0, 0.0, -0.0], np.float32)
    assert fmt.decode(encoded(fmt, values)).tolist() == [8.0, -8.0, 0.0, 0.0]


def test_encoding_nothing_and_more_than_a_block() -> None:
    fmt = FixedPoint.for_sum(1, 1.0)
    assert encoded(fmt, np.empty(0, np.float32)).shape == (0,)
    values = np.linspace(-1, 1, 2 * BLOCK + 7, dtype=np.float32)
    words = encoded(fmt, values)
    assert np.abs(fmt.decode(words) - values).max() <= 2.0**-24
    assert fmt.beyond(words, 1.0, words.size) is None


@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("value", [0.75, -0.75])
def test_what_lies_beyond_a_bound_is_found(at: int, value: float) -> None:
    fmt = FixedPoint.for_sum(2, 1.0)
    values = np.zeros(BLOCK + 2, np.float32)
    values[at] = value
    words = encoded(fmt, values)
    assert (fmt.beyond(words, 0.74, words.size), fmt.beyond(words, 0.75, words.size), fmt.beyond(words, 0.74, at)) == (at, None, None)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40), st.integers(0, 45), st.lists(st.integers(0, 170), max_size=8))
def test_the_extremes_of_a_stream_are_those_of_its_first_words_wherever_it_is_cut(numbers: list[int], size: int, cuts: list[int]) -> None:
    data, seen = np.array(numbers, "<i4").tobytes(), Extremes(size)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        seen.see(memoryview(data)[start:end])
    assert (seen.least, seen.most) == (min(0, *numbers[:size], 0), max(0, *numbers[:size], 0))


@pytest.mark.parametrize(("value", "at"), [(0.75, None), (0.76, 1), (-0.75, None), (-0.76, 1)])
def test_what_was_seen_to_be_within_a_bound_is_not_read_again(value: float, at: int | None) -> None:
    fmt = FixedPoint.for_sum(2, 1.0)
    words, seen = encoded(fmt, np.array([0.0, value], np.float32)), Extremes(2)
    seen.see(words.tobytes())
    elsewhere = encoded(fmt, np.array([0.0, 1.0], np.float32))
    assert fmt.beyond(elsewhere, 0.75, 2, seen) == at


def test_the_decoder_divides() -> None:
    fmt = FixedPoint.for_sum(4, 8.0)
    assert fmt.decode(encoded(fmt, np.array([6.0], np.float32)), 1.5).tolist() == [4.0]


# ----------------------------------------------------------------------------------------------------------------- limbs

numbers = st.floats(-LIMIT, LIMIT).map(lambda x: round(x * 2**20) / 2**20)


@given(st.lists(numbers, min_size=1, max_size=8))
def test_limbs_are_exact(values: list[float]) -> None:
    words = limbs(*values)
    assert from_limbs(words).tolist() == values
    assert int(words.max()) < 1 << 12


@given(st.lists(numbers.map(lambda x: round(x / 64 * 2**20) / 2**20), min_size=1, max_size=64))
def test_a_sum_of_limbs_is_exact(values: list[float]) -> None:
    total = np.zeros(LIMBS, WORD)
    for value in values:
        add(total, limbs(value, terms=64))
    assert from_limbs(total).tolist() == [sum(round(v * 2**20) for v in values) / 2**20]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_most_terms_of_the_largest_number_add_up(sign: int) -> None:
    most = sign * LIMIT / MOST_TERMS
    one = limbs(most, terms=MOST_TERMS).astype(np.uint64)
    total = (one * np.uint64(MOST_TERMS)).astype(WORD)
    assert total.astype(np.uint64).tolist() == (one * np.uint64(MOST_TERMS)).tolist()
    assert from_limbs(total).tolist() == [sign * LIMIT]


def test_many_large_sites_add_up() -> None:
    """A thousand sites that each count 16,384 examples at a loss of ten: more than 2^27 together."""
    total = np.zeros(2 * LIMBS, WORD)
    for _ in range(1000):
        add(total, limbs(16384.0, 163840.0, terms=1000))
    assert from_limbs(total).tolist() == [16384e3, 163840e3]


@pytest.mark.parametrize(("value", "terms"), [(np.nan, 1), (np.inf, 1), (-np.inf, 1), (2 * LIMIT, 1), (LIMIT, 2), (-LIMIT, 2)])
def test_numbers_that_do_not_fit(value: float, terms: int) -> None:
    with pytest.raises(UpdateRejected, match="^a weight or metric is not finite or too large"):
        limbs(1.0, value, terms=terms)


def test_negative_limbs_and_no_limbs() -> None:
    assert from_limbs(limbs(-9.0, 0.0, -(2.0**-20))).tolist() == [-9.0, 0.0, -(2.0**-20)]
    assert from_limbs(limbs()).tolist() == []


def words_of(seed: int, size: int) -> Words:
    return np.random.default_rng(seed).integers(0, 2**32, size, dtype=np.uint32)


@given(seeds, seeds, seeds)
def test_addition_is_a_commutative_group(a: int, b: int, c: int) -> None:
    x, y, z = (words_of(seed, 7) for seed in (a, b, c))
    left, right, swapped, same = x.copy(), y.copy(), y.copy(), x.copy()
    add(left, y)
    add(swapped, x)
    assert (left == swapped).all()
    add(left, z)
    add(right, z)
    add(same, right)
    assert (left == same).all()
    add(left, np.zeros(7, WORD))
    assert (left == same).all()
    add(left, -same)
    assert not left.any()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.3, 7 / 64]), st.sampled_from([1.0, -1.0]))
def test_values_are_held_where_what_they_are_encoded_as_is_within_the_bound(seed: int, factor: float, sign: float) -> None:
    form = FixedPoint.for_sum(3, 2.0)
    # Around the bound in steps of a bit or two, where rounding decides.
    near = sign * (2.0 + np.random.default_rng(seed).integers(-6, 7) * 2.0**-23 * 2)
    values = np.array([0.5, near, -0.5], np.float32)
    encoded = np.rint(values * np.float32(factor * 2.0**form.exponent)).astype(np.int64)
    assert form.holds(values, factor, 2.0 * factor) == bool(np.abs(encoded).max() <= form.limit(2.0 * factor))
    for wrong in (np.nan, np.inf, -3e38):
        assert not form.holds(np.array([wrong, 0.5], np.float32), factor, 2.0 * factor)
    assert form.holds(np.empty(0, np.float32), factor, 2.0 * factor)
