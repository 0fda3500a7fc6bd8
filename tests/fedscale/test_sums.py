"""Answers that are added up before anybody sees them: the same bits, the same checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.aggregate import Mean
from fedscale.errors import Cause, Failure, UpdateRejected
from fedscale.events import Answered, Failed, Lost, Release, Summed, from_row, to_row
from fedscale.learner import Phase
from fedscale.metrics import BINS, Metric
from fedscale.ring import PIECE, WORD, Words
from fedscale.round import Place, Round, Status, Terms
from fedscale.update import Layout, Update
from fedscale.vector import Schema, Tensor

LAYOUT = Layout(5, (Metric("loss"),), 8, bound=2.0, weight_cap=64.0)
HISTOGRAM = Layout(0, (Metric("loss"), Metric.named("auc")), 8)
SMALL = Layout(2, (Metric("loss"),), 4, weight_cap=64)
TERMS = Terms(3, Phase.TRAIN, ("a", "b", "c", "d"), 4, 2, 60.0, 5.0, SMALL, Schema((Tensor("w", (2,)),)), "d1")


def update(delta: Any = (0.5, -1.0, 2.0, -2.0, 0.0), weight: float = 16.0, loss: float = 8.0) -> Update:
    return Update(np.asarray(delta, np.float32), weight, {"loss": np.array([loss])})


def answer(first: float = 1.0) -> Words:
    return SMALL.encode(Update(np.array([first, -first], np.float32), 8.0, {"loss": np.array([4.0])}))


# ----------------------------------------------------------------------------------------------------------------- layout


@given(st.integers(0, 2**32 - 1), st.integers(1, 64), st.sampled_from([1, 5, PIECE, PIECE + 3, 3 * PIECE]))
def test_adding_is_encoding_and_ring_addition(seed: int, weight: int, size: int) -> None:
    layout, rng = Layout(size, (Metric("loss"),), 9, bound=0.7, weight_cap=64.0), np.random.default_rng(seed)
    delta = rng.uniform(-0.7, 0.7, size).astype(np.float32)
    delta[: size // 2 + 1] *= np.float32(1e-4)
    one = Update(delta, float(weight), {"loss": rng.normal(size=1)})
    total = rng.integers(0, 2**32, layout.length, WORD)
    expected = total + layout.encode(one)
    layout.add(one, total)
    assert (total == expected).all()


@pytest.mark.parametrize(
    "bad",
    [
        update(weight=0.0),
        update(weight=65.0),
        update(weight=float("nan")),
        update((0, 0, 0, np.nan, 0)),
        update((0, -np.inf, 0, 0, 0)),
        update((0, 0, 0, 0, 2.01)),
        update((-2.01, 0, 0, 0, 0), 1.0),
        update((1e38, 0, 0, 0, -1e38)),
        update((0, 0, 0, 0)),
        update(loss=float("inf")),
        Update(np.zeros(5, np.float32), 3.0, {}),
        Update(np.zeros(5), 3.0, {"loss": np.zeros(1)}),  # type: ignore[arg-type]
    ],
)
def test_what_encoding_refuses_is_not_added_in_the_same_words(bad: Update) -> None:
    with pytest.raises(UpdateRejected) as expected:
        LAYOUT.encode(bad)
    total = np.arange(LAYOUT.length, dtype=WORD)
    with pytest.raises(UpdateRejected) as caught:
        LAYOUT.add(bad, total)
    assert str(caught.value) == str(expected.value)
    assert total.tolist() == list(range(LAYOUT.length))


@pytest.mark.parametrize(("count", "fits"), [(4.0, True), (12.0, False), (-1.0, False)])
def test_a_histogram_counts_no_more_than_there_are(count: float, fits: bool) -> None:
    counts = np.zeros(2 * BINS)
    counts[7] = count
    one, total = Update(np.empty(0, np.float32), 10.0, {"loss": np.zeros(1), "auc": counts}), np.zeros(HISTOGRAM.length, WORD)
    if fits:
        HISTOGRAM.add(one, total)
        assert HISTOGRAM.tail(total)[1]["auc"][7] == count
    else:
        with pytest.raises(UpdateRejected, match="counts more examples than the answer's weight, or fewer than none"):
            HISTOGRAM.add(one, total)


def test_the_mean_of_several_counts_as_all_of_them() -> None:
    total = np.zeros(LAYOUT.length, WORD)
    LAYOUT.add(update(weight=3 * 64.0, loss=30.0), total, 3)
    LAYOUT.add(update(np.zeros(5), weight=64.0, loss=2.0), total)
    weight, sums = LAYOUT.tail(total)
    assert (weight, sums["loss"][0]) == (256.0, 32.0)
    assert LAYOUT.mean(total, weight).tolist() == [0.375, -0.75, 1.5, -1.5, 0.0]


@pytest.mark.parametrize("bad", [update(weight=193.0), update((0, 0, 0, 0, 2.01), 192.0), update((0, np.nan, 0, 0, 0), 192.0)])
def test_the_mean_of_several_has_the_bounds_of_one(bad: Update) -> None:
    total = np.zeros(LAYOUT.length, WORD)
    with pytest.raises(UpdateRejected):
        LAYOUT.add(bad, total, 3)
    assert not total.any()


# ------------------------------------------------------------------------------------------------------------------ round


def opened() -> Round:
    return Round.begin(TERMS, Mean())


def test_a_sum_is_its_answers() -> None:
    one, other = opened(), opened()
    for node in "abcd":
        one.handle(Answered(node, "", answer()))
    other.handle(Summed(("a", "c"), answer() + answer()))
    assert (other.status, other.partial.count) == (Status.OPEN, 2)
    assert other.handle(Summed(("d", "b"), answer() + answer())) == []
    assert other.status is Status.CLOSED
    assert (one.partial.words == other.partial.words).all()
    assert (one.partial.count, one.places, one.answered()) == (other.partial.count, other.places, other.answered())
    assert one.result()[1] == other.result()[1]


@pytest.mark.parametrize(
    "event",
    [
        Summed(("a", "stranger"), answer()),
        Summed(("a", "b"), answer()),
        Summed(("c", "c"), answer()),
        Summed(("c", "d"), None),
    ],
)
def test_a_sum_with_somebody_who_cannot_answer_changes_nothing(event: Summed) -> None:
    current = opened()
    current.handle(Failed("b", Failure(Cause.CODE, "broken")))
    before = dict(current.places)
    assert current.handle(event) == []
    assert (current.places, current.partial.count) == (before, 0)
    assert not current.partial.words.any()


def test_a_lost_node_may_be_in_a_sum() -> None:
    current = opened()
    current.handle(Lost("a"))
    current.handle(Summed(("a", "b"), answer()))
    assert (current.places["a"], current.failures) == (Place.ANSWERED, {})
    assert {place: count for place, count in current.counts.items() if count} == {Place.ANSWERED: 2, Place.ASKED: 2}


def test_a_sum_that_closes_the_round_releases_the_others() -> None:
    current = Round.begin(Terms(*(3, Phase.TRAIN, ("a", "b", "c"), 2, 2, 60.0, 5.0, SMALL, TERMS.schema, "d1")), Mean())
    assert current.handle(Summed(("a", "b"), answer())) == [Release("c", 3, "train")]


def test_a_sum_stands_in_a_journal_without_its_words() -> None:
    event = Summed(("a", "b"), answer())
    kind, row = to_row(event)
    assert (kind, row) == ("summed", {"nodes": ("a", "b")})
    assert from_row(kind, {"nodes": ["a", "b"]}) == event
