"""Task: what one node is asked in one round, and how a learner's result becomes its answer.

``perform`` is the node's half of a round. The worker of a real node and the simulator both call it, so the same plan,
seed and learner give the same bits in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedscale import transform
from fedscale.data import Dataset
from fedscale.errors import AppError, UpdateRejected
from fedscale.learner import Learner, Phase, Result, Work
from fedscale.metrics import Metric
from fedscale.plan import Plan
from fedscale.ring import Words
from fedscale.sampling import derived_seed
from fedscale.strategy import Strategy
from fedscale.update import Layout, Update
from fedscale.vector import Schema, Vector


@dataclass(frozen=True, slots=True)
class Task:
    """One request to one node.

    Args:
        node: whom it is for.
        phase: what to do.
        number: the round, from 1; 0 for the first model.
        layout: how the answer is laid out.
        schema: the model's parts; ``None`` when the first model is asked for.
        model: SHA-256 of the global model's bytes, in hex; empty when the first model is asked for.
    """

    node: str
    phase: Phase
    number: int
    layout: Layout
    schema: Schema | None
    model: str


@dataclass(frozen=True, slots=True)
class FirstModel:
    """The answer to a task of phase ``init``."""

    schema: Schema
    model: Vector


def layout_for(plan: Plan, phase: Phase, size: int, terms: int) -> Layout:
    """The layout of a round's answers, computed alike by server, node and simulator."""
    if phase is Phase.EVALUATE:
        return Layout(0, tuple(Metric.named(m) for m in plan.evaluate.pooled), terms)
    # Where all count the same, a cap of one lets each use the whole width of the ring.
    cap = 1.0 if plan.strategy.weighting == "equal" else plan.aggregate.weight_cap
    return Layout(size, (Metric("loss"),), terms, plan.aggregate.bound, cap)


def portion(plan: Plan, phase: Phase, data: Any) -> Any:
    """The part of a site's dataset that a phase may see; data that is not a ``Dataset`` is the learner's own business."""
    if not isinstance(data, Dataset) or phase is Phase.INIT or not plan.evaluate.holdout:
        return data
    train, held_out = data.split(plan.evaluate.holdout, plan.job.seed)
    return train if phase is Phase.TRAIN else held_out


def perform(
    task: Task,
    plan: Plan,
    strategy: Strategy,
    learner: Learner,
    data: Any,
    model: Vector | None,
    progress: Callable[[float], None] = lambda _: None,
) -> FirstModel | Words:
    """Do a task with a learner and lay the result out for the ring; see ``compute``."""
    done = compute(task, plan, strategy, learner, data, model, progress)
    return done if isinstance(done, FirstModel) else task.layout.encode(done)


def compute(
    task: Task,
    plan: Plan,
    strategy: Strategy,
    learner: Learner,
    data: Any,
    model: Vector | None,
    progress: Callable[[float], None] = lambda _: None,
) -> FirstModel | Update:
    """Do a task with a learner.

    Args:
        data: the site's dataset, already cut to the phase by ``portion``.
        model: the global model, which is not changed; ``None`` for the first one.

    Raises:
        AppError: the learner did not return a usable result.
        UpdateRejected: its result cannot be laid out in the ring.
    """
    result = learner.run(
        Work(
            phase=task.phase,
            number=task.number,
            seed=plan.job.seed if task.phase is Phase.INIT else derived_seed(plan.job.seed, task.number, task.node),
            arrays=None if task.schema is None or model is None else task.schema.unpack(model),
            data=data,
            training=plan.train,
            metrics=tuple(m.name for m in task.layout.metrics),
            proximal=strategy.proximal,
            progress=progress,
        )
    )
    if not isinstance(result, Result):
        raise AppError(f"the learner returned {type(result).__name__}", why="a Result is expected")
    if task.phase is Phase.INIT:
        return _first(result)
    return _update(task, strategy, result, model)


def _first(result: Result) -> FirstModel:
    """The first model of a learner's result, checked."""
    if not result.arrays:
        raise AppError("the learner returned no first model", hint="return Result(arrays=...) for phase 'init'")
    schema = Schema.of(result.arrays)
    model = schema.pack(result.arrays)
    if not np.isfinite(model).all():
        raise AppError("the first model has values that are not finite")
    return FirstModel(schema, model)


def _update(task: Task, strategy: Strategy, result: Result, model: Vector | None) -> Update:
    """A learner's result as a weighted, transformed update; the metric sums scale with the weight."""
    if not result.examples > 0:
        raise AppError("the learner saw no examples", hint="check the dataset with: fedscale node data check")
    weight = float(result.examples)
    delta = np.empty(0, np.float32)
    if task.phase is Phase.TRAIN:
        if result.arrays is None or task.schema is None or model is None:
            raise AppError("the learner returned no trained model", hint="return Result(arrays=...) for phase 'train'")
        with np.errstate(over="ignore"):
            delta = np.subtract(task.schema.flat(result.arrays), model)
        weight = 1.0 if strategy.weighting == "equal" else min(weight, task.layout.weight_cap)
    metrics = {name: np.asarray(sums, np.float64).reshape(-1) * (weight / result.examples) for name, sums in result.metrics.items()}
    update = Update(delta, weight, metrics)
    try:
        return transform.encode(strategy.transforms, update)
    except FloatingPointError as error:
        raise UpdateRejected("an update cannot be transformed", why=str(error)) from None
