from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import UpdateRejected
from fedscale.metrics import BINS, Metric
from fedscale.ring import LIMBS, LIMIT, Words
from fedscale.update import Layout, Update

LAYOUT = Layout(5, (Metric("loss"), Metric("brier")), 4, bound=2.0, weight_cap=64.0)
EVALUATION = Layout(0, (Metric("loss"), Metric.named("auc")), 4)
WEIGHT = "the weight of an answer is not within its bounds (it must be above 0 and at most 64)"
HINT = "lower the learning rate or raise aggregate.bound"
SCALE = "scale the features, or lower the learning rate"


def update(delta: Any = (0.5, -1.0, 2.0, -2.0, 0.0), weight: float = 16.0, **metrics: Any) -> Update:
    sums = {name: np.asarray(value, np.float64) for name, value in {"loss": [8.0], "brier": [1.25], **metrics}.items()}
    return Update(np.asarray(delta, np.float32), weight, sums)


def changed(at: int | slice, value: int, layout: Layout = LAYOUT) -> Words:
    words = layout.encode(update()) if layout is LAYOUT else histogram(1.0)
    words[at] = value
    return words


def histogram(count: float, weight: float = 10.0, at: int = 0) -> Words:
    counts = np.zeros(2 * BINS)
    counts[at] = count
    return EVALUATION.encode(Update(np.empty(0, np.float32), weight, {"loss": np.zeros(1), "auc": counts}))


def test_the_layout_of_an_answer() -> None:
    assert (LAYOUT.length, LAYOUT.nbytes) == (5 + 3 * LIMBS, 4 * (5 + 3 * LIMBS))
    assert EVALUATION.length == LIMBS * (2 + 2 * BINS)
    words = LAYOUT.encode(update())
    weight, sums = LAYOUT.tail(words)
    assert (weight, {name: value.tolist() for name, value in sums.items()}) == (16.0, {"loss": [8.0], "brier": [1.25]})
    assert LAYOUT.mean(words, weight).tolist() == [0.5, -1.0, 2.0, -2.0, 0.0]
    LAYOUT.check(words)


def test_the_sum_of_answers_holds_mean_weight_and_metrics() -> None:
    first, second = update(weight=16.0), update((-0.5, 1.0, 2.0, 0.0, 1.0), weight=48.0, loss=[24.0])
    total = LAYOUT.encode(first) + LAYOUT.encode(second)
    weight, sums = LAYOUT.tail(total)
    assert (weight, sums["loss"][0]) == (64.0, 32.0)
    assert LAYOUT.mean(total, weight) == pytest.approx([-0.25, 0.5, 2.0, -0.5, 0.75], abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 64), st.integers(1, 200))
def test_whatever_a_node_may_send_the_server_takes(seed: int, weight: int, terms: int) -> None:
    layout = Layout(30, (Metric("loss"),), terms, bound=0.7, weight_cap=64.0)
    rng = np.random.default_rng(seed)
    delta = rng.choice(np.array([0.7, -0.7, 0.69999, 0.0, rng.uniform(-0.7, 0.7)], np.float32), 30)
    words = layout.encode(Update(delta, weight, {"loss": rng.normal(size=1)}))
    layout.check(words)
    assert np.abs(layout.mean(words, weight) - delta).max() <= 2.0**-layout.format.exponent * 64 / weight + 1e-6


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (update(weight=0.0), WEIGHT),
        (update(weight=-9.0), WEIGHT),
        (update(weight=64.001), WEIGHT),
        (update(weight=1e30), WEIGHT),
        (update(weight=float("nan")), WEIGHT),
        (update(weight=float("inf")), WEIGHT),
        (update((0, 0, 0, np.nan, 0)), f"coordinate 3: a value is not finite; {HINT}"),
        (update((0, np.inf, 0, np.nan, 0)), f"coordinate 1: a value is not finite; {HINT}"),
        (update((0, 0, 0, 0, 2.01), 64.0), f"coordinate 4: a value is beyond the agreed range; {HINT}"),
        (update((0, 0, 0, 0, -2.01), 1.0), f"coordinate 4: a value is beyond the agreed range; {HINT}"),
        (update((0, 0, 0, 0, 100.0), 1.0), f"coordinate 4: a value is beyond the agreed range; {HINT}"),
        (update((0, 0, 0, 0)), "a model change of shape (4,) and dtype float32 does not fit 5 float32 coordinates"),
        (update(np.zeros((5, 1))), "a model change of shape (5, 1) and dtype float32 does not fit 5 float32 coordinates"),
        (Update(np.zeros(5), 1.0), "a model change of shape (5,) and dtype float64 does not fit 5 float32 coordinates"),  # type: ignore[arg-type]
        (update(loss=[1.0, 2.0]), "metric 'loss' has 2 values, the plan asks for 1"),
        (update(loss=[]), "metric 'loss' has 0 values, the plan asks for 1"),
        (update(loss=1.0), "metric 'loss' has 1 values, the plan asks for 1"),
        (Update(np.zeros(5, np.float32), 1.0, {"loss": np.ones(1)}), "metric 'brier' has 0 values, the plan asks for 1"),
        (update(loss=[np.nan]), f"a weight or metric is not finite or too large (the limit is {LIMIT / 4:.0f}); {SCALE}"),
        (update(loss=[np.inf]), f"a weight or metric is not finite or too large (the limit is {LIMIT / 4:.0f}); {SCALE}"),
        (update(loss=[-1e30]), f"a weight or metric is not finite or too large (the limit is {LIMIT / 4:.0f}); {SCALE}"),
    ],
)
def test_what_a_node_may_not_send(bad: Update, message: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        LAYOUT.encode(bad)
    assert str(caught.value) == message


def test_metrics_that_nobody_asked_for_stay_at_the_node() -> None:
    assert (LAYOUT.encode(update(secret=[5.0])) == LAYOUT.encode(update())).all()


COUNTS = "metric 'auc' counts more examples than the answer's weight, or fewer than none"


@pytest.mark.parametrize(
    ("layout", "words", "message"),
    [
        (LAYOUT, np.zeros(LAYOUT.length, np.uint32), WEIGHT),
        (LAYOUT, changed(slice(5, 5 + LIMBS), 0xFFF), WEIGHT),
        (LAYOUT, changed(6, 1 << 12), "the weight or a metric of an answer is malformed (one answer has limbs of 12 bits)"),
        (LAYOUT, changed(-1, 2**32 - 1), "the weight or a metric of an answer is malformed (one answer has limbs of 12 bits)"),
        (LAYOUT, changed(-1, 0x7FF), f"metric 'brier' is too large (the limit is {LIMIT / 4:.0f})"),
        (LAYOUT, changed(-1, 0x800), f"metric 'brier' is too large (the limit is {LIMIT / 4:.0f})"),
        (LAYOUT, changed(2, 1 << 29), f"coordinate 2: a value is beyond the agreed range; {HINT}"),
        (LAYOUT, changed(0, 1 << 31), f"coordinate 0: a value is beyond the agreed range; {HINT}"),
        (LAYOUT, np.zeros(LAYOUT.length - 1, np.uint32), "an answer of 19 words of uint32 (the round asks for 20 words of uint32)"),
        (LAYOUT, np.zeros((1, LAYOUT.length), np.uint32), "an answer of 20 words of uint32 (the round asks for 20 words of uint32)"),
        (LAYOUT, np.zeros(LAYOUT.length, np.int64), "an answer of 20 words of int64 (the round asks for 20 words of uint32)"),
        (LAYOUT, np.zeros(LAYOUT.length, np.float32), "an answer of 20 words of float32 (the round asks for 20 words of uint32)"),
        (EVALUATION, histogram(12.0), COUNTS),
        (EVALUATION, histogram(-1.0), COUNTS),
        (EVALUATION, histogram(1e9), COUNTS),
    ],
)
def test_what_a_server_does_not_take(layout: Layout, words: Any, message: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        layout.check(words)
    assert str(caught.value) == message


@pytest.mark.parametrize("count", [0.0, 1.0, 10.0, 11.0])
def test_counts_within_the_weight_pass(count: float) -> None:
    words = histogram(count)
    EVALUATION.check(words)
    assert EVALUATION.tail(words)[1]["auc"].sum() == count


def test_a_forged_weight_loosens_no_bound() -> None:
    """A node that claims 1 example may not use the room of 64."""
    words = LAYOUT.encode(update(weight=64.0))
    light = LAYOUT.encode(update(weight=1.0))
    words[5:] = light[5:]
    with pytest.raises(UpdateRejected, match="^coordinate 0: a value is beyond the agreed range"):
        LAYOUT.check(words)


def test_checking_needs_no_copy_and_changes_nothing() -> None:
    words = LAYOUT.encode(update())
    before = words.copy()
    words.flags.writeable = False
    LAYOUT.check(words)
    assert (words == before).all()
