from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedscale.data import Dataset, from_arrays
from fedscale.errors import AppError, DataError, UpdateRejected
from fedscale.learner import Learner, Phase, Result, Work
from fedscale.metrics import BINS, Metric
from fedscale.plan import Plan
from fedscale.ring import LIMIT, Words
from fedscale.sampling import derived_seed
from fedscale.strategy import Strategy
from fedscale.task import FirstModel, Task, layout_for, perform, portion
from fedscale.update import Layout
from fedscale.vector import Schema
from tests.fedscale.world import plan_of

MODEL = {"w": np.array([[1, 2], [3, 4]], np.float32), "b": np.array([5], np.float32)}
SCHEMA = Schema.of(MODEL)
FLAT = SCHEMA.pack(MODEL)
PLAN = plan_of(job={"seed": 9}, evaluate={"metrics": ["accuracy"]})


class Scripted:
    """A learner that notes what it is asked and answers by a function."""

    def __init__(self, answer: Callable[[Work], Any]) -> None:
        self.answer, self.seen = answer, list[Work]()

    def run(self, work: Work) -> Result:
        self.seen.append(work)
        result: Result = self.answer(work)
        return result


def plus(work: Work, change: float = 0.5, examples: int = 20, **sums: float) -> Result:
    arrays = {name: array + np.float32(change) for name, array in (work.arrays or {}).items()}
    return Result(arrays, examples, {"loss": np.array([10.0]), **{k: np.array([v]) for k, v in sums.items()}})


def task_of(phase: Phase = Phase.TRAIN, plan: Plan = PLAN, terms: int = 4) -> Task:
    first = phase is Phase.INIT
    return Task("ada", phase, 0 if first else 3, layout_for(plan, phase, 0 if first else SCHEMA.size, terms), None if first else SCHEMA, "d")


def done(answer: Callable[[Work], Any], phase: Phase = Phase.TRAIN, plan: Plan = PLAN, strategy: Strategy | None = None) -> FirstModel | Words:
    model = None if phase is Phase.INIT else FLAT
    return perform(task_of(phase, plan), plan, strategy or plan.strategy.build(), Scripted(answer), "data", model)


def read(layout: Layout, words: FirstModel | Words) -> tuple[list[float], float, dict[str, list[float]]]:
    assert isinstance(words, np.ndarray)
    weight, sums = layout.tail(words)
    return layout.mean(words, weight).tolist(), weight, {name: value.tolist() for name, value in sums.items()}


def test_training_answers_with_the_change() -> None:
    delta, weight, sums = read(task_of().layout, done(plus))
    assert delta == pytest.approx([0.5] * 5, abs=1e-4)
    assert (weight, sums) == (20.0, {"loss": [10.0]})


def test_evaluation_answers_with_sums_only() -> None:
    layout = task_of(Phase.EVALUATE).layout
    assert layout.size == 0
    assert read(layout, done(lambda w: plus(w, accuracy=15), Phase.EVALUATE)) == ([], 20.0, {"loss": [10.0], "accuracy": [15.0]})


def test_the_first_model() -> None:
    first = done(lambda _: Result(MODEL, 0), Phase.INIT)
    assert isinstance(first, FirstModel)
    assert (first.schema, first.model.tolist()) == (SCHEMA, [1, 2, 3, 4, 5])


def test_what_a_learner_is_told() -> None:
    learner, seen = Scripted(lambda w: plus(w, accuracy=1)), list[float]()
    prox = plan_of(job={"seed": 9}, strategy={"name": "fedprox", "mu": 0.25}, train={"epochs": 7}, evaluate={"metrics": ["accuracy"]})
    for phase in (Phase.TRAIN, Phase.EVALUATE):
        perform(task_of(phase, prox), prox, prox.strategy.build(), learner, "data", FLAT, seen.append)
    train, evaluate = learner.seen
    assert (train.phase, train.number, train.seed, train.data, train.proximal) == (Phase.TRAIN, 3, derived_seed(9, 3, "ada"), "data", 0.25)
    assert (train.training.epochs, train.metrics, evaluate.metrics, evaluate.phase) == (7, ("loss",), ("loss", "accuracy"), Phase.EVALUATE)
    assert train.arrays is not None
    assert {name: array.tolist() for name, array in train.arrays.items()} == {name: array.tolist() for name, array in MODEL.items()}
    train.progress(0.5)
    assert seen == [0.5]


def test_the_first_model_depends_on_the_plan_alone() -> None:
    learner = Scripted(lambda _: Result(MODEL, 0))
    for node in ("ada", "ben"):
        perform(Task(node, Phase.INIT, 0, layout_for(PLAN, Phase.INIT, 0, 1), None, ""), PLAN, PLAN.strategy.build(), learner, None, None)
    assert [(work.seed, work.arrays, work.number) for work in learner.seen] == [(9, None, 0)] * 2


def test_a_learner_cannot_reach_the_global_model() -> None:
    frozen = FLAT.copy()
    frozen.flags.writeable = False

    def tamper(work: Work) -> Result:
        assert work.arrays is not None
        work.arrays["b"][0] = 0
        return plus(work)

    with pytest.raises(ValueError, match="read-only"):
        perform(task_of(), PLAN, PLAN.strategy.build(), Scripted(tamper), None, frozen)


def test_weights_are_capped_and_metrics_scale_with_them() -> None:
    plan = plan_of(aggregate={"weight_cap": 5})
    delta, weight, sums = read(layout_for(plan, Phase.TRAIN, 5, 4), done(plus, plan=plan))
    assert (delta, weight, sums) == ([0.5] * 5, 5.0, {"loss": [2.5]})


def test_equal_weighting_uses_the_whole_width_of_the_ring() -> None:
    plan = plan_of(strategy={"weighting": "equal"})
    layout = layout_for(plan, Phase.TRAIN, 5, 4)
    delta, weight, sums = read(layout, done(lambda w: plus(w, 0.1), plan=plan))
    assert (layout.weight_cap, weight, sums) == (1.0, 1.0, {"loss": [0.5]})
    assert delta == pytest.approx((FLAT + np.float32(0.1) - FLAT).tolist(), abs=2.0**-25)


def test_transforms_run_at_the_node() -> None:
    plan = plan_of(strategy={"clip_norm": 0.5})
    delta, _, _ = read(layout_for(plan, Phase.TRAIN, 5, 4), done(plus, plan=plan))
    assert float(np.linalg.norm(delta)) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "phase", "message"),
    [
        (lambda _: None, Phase.TRAIN, "the learner returned NoneType (a Result is expected)"),
        (lambda _: {"w": 1}, Phase.EVALUATE, "the learner returned dict (a Result is expected)"),
        (lambda _: Result(None, 5), Phase.INIT, "the learner returned no first model; return Result(arrays=...) for phase 'init'"),
        (lambda _: Result({}, 5), Phase.INIT, "the learner returned no first model; return Result(arrays=...) for phase 'init'"),
        (lambda _: Result({"w": np.array([np.nan])}, 5), Phase.INIT, "the first model has values that are not finite"),
        (lambda _: Result(None, 5), Phase.TRAIN, "the learner returned no trained model; return Result(arrays=...) for phase 'train'"),
        (lambda w: plus(w, examples=0), Phase.TRAIN, "the learner saw no examples; check the dataset with: fedscale node data check"),
        (lambda w: plus(w, examples=-3), Phase.EVALUATE, "the learner saw no examples; check the dataset with: fedscale node data check"),
    ],
)
def test_results_that_are_none(answer: Callable[[Work], Any], phase: Phase, message: str) -> None:
    with pytest.raises(AppError) as caught:
        done(answer, phase)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("answer", "phase", "message"),
    [
        (lambda w: plus(w, np.nan), Phase.TRAIN, "a value is not finite"),
        (lambda w: plus(w, np.inf), Phase.TRAIN, "a value is not finite"),
        (lambda w: plus(w, 1e3), Phase.TRAIN, "a value is beyond the agreed range"),
        (lambda w: Result({"w": MODEL["w"]}, 1, {"loss": np.zeros(1)}), Phase.TRAIN, "tensor 'b' is missing from the answer"),
        (lambda w: Result({**MODEL, "b": np.array([5])}, 1, {}), Phase.TRAIN, "tensor 'b' is of dtype int64, the model has float32"),
        (lambda w: Result({**MODEL, "b": np.array(5, np.float32)}, 1, {}), Phase.TRAIN, "tensor 'b' has shape (), the model has (1,)"),
        (lambda w: Result(MODEL, 1, {}), Phase.TRAIN, "metric 'loss' has 0 values, the plan asks for 1"),
        (plus, Phase.EVALUATE, "metric 'accuracy' has 0 values, the plan asks for 1"),
        (lambda w: plus(w, accuracy=np.nan), Phase.EVALUATE, "a weight or metric is not finite or too large"),
        (lambda _: Result({"n": np.array([1])}, 1), Phase.INIT, "tensor 'n' is of dtype int64"),
        (lambda w: plus(w, 3.4e38), Phase.TRAIN, "a value is beyond the agreed range"),
        (lambda _: Result({**MODEL, "b": np.array([1e300])}, 1, {"loss": np.zeros(1)}), Phase.TRAIN, "a value is not finite"),
    ],
)
def test_results_that_cannot_be_summed(answer: Callable[[Work], Any], phase: Phase, message: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        done(answer, phase)
    assert caught.value.what == message


def test_the_layouts_of_the_phases() -> None:
    plan = plan_of(evaluate={"metrics": ["auc", "loss"]}, aggregate={"bound": 3, "weight_cap": 50})
    assert layout_for(plan, Phase.TRAIN, 7, 5) == Layout(7, (Metric("loss"),), 5, 3.0, 50.0)
    assert layout_for(plan, Phase.EVALUATE, 7, 5) == Layout(0, (Metric("loss"), Metric("auc", 2 * BINS)), 5)
    assert layout_for(plan, Phase.EVALUATE, 7, 5).weight_cap == LIMIT


def dataset(rows: int = 50) -> Dataset:
    return from_arrays(np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), np.arange(rows, dtype=np.int64) % 2)


def test_training_and_evaluation_share_no_row() -> None:
    plan, data = plan_of(evaluate={"holdout": 0.3}), dataset()
    train, held_out = portion(plan, Phase.TRAIN, data), portion(plan, Phase.EVALUATE, data)
    rows = [{tuple(row) for row in part.x.tolist()} for part in (train, held_out)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == 50
    assert len(train) > len(held_out) > 0
    assert portion(plan, Phase.INIT, data) is data


@pytest.mark.parametrize(
    ("rows", "phase", "told"),
    [
        (
            1,
            Phase.EVALUATE,
            "no row to evaluate on (the dataset has too few rows to hold some out); leave the client out of the run, or set evaluate.",
        ),
        (0, Phase.TRAIN, "there is no row to train on (the dataset is empty); leave the client out of the run"),
    ],
)
def test_a_phase_without_rows_is_told_apart(rows: int, phase: Phase, told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        portion(plan_of(), phase, dataset(rows))
    assert len(portion(plan_of(), Phase.TRAIN, dataset(1))) == 1


@pytest.mark.parametrize("phase", Phase)
def test_data_of_another_kind_and_without_holdout_is_left_alone(phase: Phase) -> None:
    data, whole = object(), dataset()
    assert portion(plan_of(), phase, data) is data
    assert portion(plan_of(evaluate={"holdout": 0}), phase, whole) is whole


def test_anything_with_a_run_method_is_a_learner() -> None:
    assert isinstance(Scripted(plus), Learner)
    assert not isinstance(object(), Learner)


def test_the_same_work_gives_the_same_bits() -> None:
    answers = [done(lambda w: plus(w, float(np.random.default_rng(w.seed).random()))) for _ in range(2)]
    first, second = (answer.tobytes() for answer in answers if isinstance(answer, np.ndarray))
    assert first == second
