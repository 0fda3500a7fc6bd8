"""Task: what one node is asked in one round, and how a learner's result becomes its answer.

``perform`` is the node's half of a round. The worker of a real node and the simulator both call it, so the same plan,
seed and learner give the same bits in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedscale import transform
from fedscale.data import Dataset
from fedscale.errors import AppError, DataError, PlanError, UpdateRejected
from fedscale.learner import Learner, Phase, Private, Result, Work
from fedscale.metrics import Metric
from fedscale.plan import Plan
from fedscale.privacy import noise, rounds
from fedscale.privacy.clip import contribution
from fedscale.privacy.lots import derived
from fedscale.privacy.units import units_of
from fedscale.ring import WORD, Words, add
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
class Tasks:
    """The same request to several nodes; the task of each is made when somebody looks at it.

    Args:
        nodes: whom it is for.
        phase, number, layout, schema, model: as in each ``Task``.
    """

    nodes: Sequence[str]
    phase: Phase
    number: int
    layout: Layout
    schema: Schema | None
    model: str

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    def __iter__(self) -> Iterator[Task]:
        """The task of each node."""
        return map(self.task, self.nodes)

    def task(self, node: str) -> Task:
        """The task of a node."""
        return Task(node, self.phase, self.number, self.layout, self.schema, self.model)

    def to(self, nodes: Sequence[str]) -> Tasks:
        """The same request to others."""
        return replace(self, nodes=nodes)


def for_first_model(plan: Plan, nodes: Sequence[str]) -> Tasks:
    """What nodes are asked that are to make the first model."""
    return Tasks(nodes, Phase.INIT, 0, layout_for(plan, Phase.INIT, 0, 1), None, "")


@dataclass(frozen=True, slots=True)
class FirstModel:
    """The answer to a task of phase ``init``."""

    schema: Schema
    model: Vector


def layout_for(plan: Plan, phase: Phase, size: int, terms: int, clip: float = 0.0) -> Layout:
    """The layout of a round's answers, computed alike by server, node and simulator.

    Args:
        plan: the configuration.
        phase: of the round.
        size: coordinates of the model.
        terms: most answers that may be summed.
        clip: the round's, where the plan's moves; 0 for the plan's own.

    Raises:
        PlanError: the plan allows no such clip.
    """
    bits = plan.secagg.word_bits
    if phase is Phase.EVALUATE:
        return Layout(0, tuple(Metric.named(m) for m in plan.evaluate.pooled), terms, bits=bits)
    if plan.privacy is not None:
        # The loss of the rows trained on and their number stay at the site; all nodes count the same.
        dp = rounds.in_round(plan.privacy, clip)
        extra, own = (1, dp.clip) if dp.clip_quantile is not None and phase is Phase.TRAIN else (0, 0.0)
        return Layout(size + extra, (), terms, plan.private_bound(dp), 1.0, bits, own)
    # Where all count the same, a cap of one lets each use the whole width of the ring.
    cap = 1.0 if plan.strategy.weighting == "equal" else plan.aggregate.weight_cap
    return Layout(size, (Metric("loss"),), terms, plan.aggregate.bound, cap, bits)


def portion(plan: Plan, phase: Phase, data: Any) -> Any:
    """The part of a site's dataset that a phase may see; data that is not a ``Dataset`` is the learner's own business.

    Raises:
        DataError: no row of it is left for the phase.
    """
    if not isinstance(data, Dataset) or phase is Phase.INIT or not plan.evaluate.holdout:
        return data
    # Where rows are hidden, no row may have a say in the part that another belongs to.
    alone = plan.privacy is not None and plan.privacy.unit != "node"
    train, held_out = (data.split_alone if alone else data.split)(plan.evaluate.holdout, plan.job.seed)
    part = train if phase is Phase.TRAIN else held_out
    if not len(part):
        why = "the dataset has too few rows to hold some out" if len(data) else "the dataset is empty"
        hint = "leave the client out of the run" + (", or set evaluate.holdout = 0 to evaluate on what is trained on" if len(data) else "")
        raise DataError(f"there is no row to {phase} on", why=why, hint=hint)
    return part


def private_for(plan: Plan, phase: Phase, data: Any, key: bytes | None = None) -> Private | None:
    """How a site hides its rows or itself in a task of that phase; ``None`` where the plan does not ask for it.

    Args:
        plan: the configuration.
        phase: of the task.
        data: the site's whole dataset, not cut to the phase.
        key: of all chance, for a simulation that can be repeated; never in a deployment.

    Raises:
        PlanError: no noise keeps the plan's promise.
        DataError: the units of privacy cannot be counted.
    """
    dp = plan.privacy
    if dp is None or phase is not Phase.TRAIN:
        return None
    units = units_of(data, dp.unit)
    private = rounds.private_of(dp, plan.train, plan.strategy.rounds, units, masked=plan.secagg.enabled, key=key)
    if private.way == "union" and units * rounds.reach(dp, plan.train) > plan.aggregate.bound:
        hint = "raise train.batch_size to about the units of a site in a step, or lower train.optimizer.lr"
        raise PlanError("the gradients of this site may not fit into aggregate.bound", where="train.batch_size", hint=hint)
    return private


def perform(
    task: Task,
    plan: Plan,
    strategy: Strategy,
    learner: Learner,
    data: Any,
    model: Vector | None,
    progress: Callable[[float], None] = lambda _: None,
    private: Private | None = None,
) -> FirstModel | Words:
    """Do a task with a learner and lay the result out for the ring, with its share of the noise where the plan has noise in shares.

    The arguments and errors are those of ``compute``.
    """
    done = compute(task, plan, strategy, learner, data, model, progress, private)
    if isinstance(done, FirstModel):
        return done
    words = task.layout.encode(done)
    if (share := noise_of(task, plan, private)) is not None:
        add(words[: task.layout.size], share)
    return words


def noise_of(task: Task, plan: Plan, private: Private | None, sites: int = 1) -> Words | None:
    """A site's share of the noise, for the model's coordinates of its answer; ``None`` where the plan has no noise in shares.

    Args:
        sites: whose shares these are, in one draw for the sum of their answers: sums of Skellam noise are Skellam noise.

    Raises:
        PlanError: the ring is too coarse for it.
    """
    if plan.privacy is None or private is None or private.way not in rounds.SHARED:
        return None
    size, exponent = task.layout.size, task.layout.format.exponent
    reached = rounds.reach(rounds.in_round(plan.privacy, task.layout.clip), plan.train)
    sigma = rounds.in_shares(private, reached, size, exponent, plan.shares) * math.sqrt(sites)
    key = None if private.key is None else derived(private.key, "share", task.number)
    return noise.skellam(size, sigma, key).astype(WORD)


def compute(
    task: Task,
    plan: Plan,
    strategy: Strategy,
    learner: Learner,
    data: Any,
    model: Vector | None,
    progress: Callable[[float], None] = lambda _: None,
    private: Private | None = None,
) -> FirstModel | Update:
    """Do a task with a learner; noise in shares is not yet in what is returned.

    Args:
        data: the site's dataset, already cut to the phase by ``portion``.
        model: the global model, which is not changed; ``None`` for the first one.
        private: what ``private_for`` says about the whole dataset.

    Raises:
        AppError: the learner did not return a usable result, or does not know how to keep it private.
        PlanError: the plan asks for privacy and ``private`` is not there: nothing is ever trained without it then.
        UpdateRejected: its result cannot be laid out in the ring.
    """
    hidden = _required(plan, task.phase, learner, private)
    result = learner.run(
        Work(
            phase=task.phase,
            number=task.number,
            seed=plan.job.seed if task.phase is Phase.INIT else derived_seed(plan.job.seed, task.number, task.node),
            arrays=None if task.schema is None or model is None else task.schema.unpack(model),
            data=data,
            training=plan.train,
            metrics=task.layout.names,
            proximal=strategy.proximal,
            progress=progress,
            private=hidden,
        )
    )
    if not isinstance(result, Result):
        raise AppError(f"the learner returned {type(result).__name__}", why="a Result is expected")
    if task.phase is Phase.INIT:
        return _first(result)
    if result.private != hidden:
        raise AppError("the learner did not keep to the privacy asked for", why="its Result does not carry Work.private")
    return _update(task, plan, strategy, result, model, private)


def _required(plan: Plan, phase: Phase, learner: Learner, private: Private | None) -> Private | None:
    """What the learner is told of privacy; refused where the plan asks for it and it would not be kept."""
    dp = plan.privacy
    if (dp is None or phase is not Phase.TRAIN) != (private is None):
        raise PlanError("the plan asks for privacy and this site would train without", where="privacy", hint="update the node's software")
    if dp is None or dp.unit == "node" or phase is Phase.EVALUATE:
        return None
    require_hiding(learner, dp.unit)
    return private


def require_hiding(learner: Learner, unit: str) -> None:
    """Refuse a learner that cannot hide a record or patient; a whole node is hidden whatever it learns with.

    Raises:
        AppError: with the reason.
    """
    require = getattr(learner, "require_private", None)
    if unit != "node" and not callable(require):
        hint = "use fs.App, or write require_private(unit) and keep to Work.private"
        raise AppError(f"this learner does not know how to hide a {unit}", where="privacy.unit", hint=hint)
    if unit != "node" and callable(require):
        require(unit)


def _first(result: Result) -> FirstModel:
    """The first model of a learner's result, checked."""
    if not result.arrays:
        raise AppError("the learner returned no first model", hint="return Result(arrays=...) for phase 'init'")
    schema = Schema.of(result.arrays)
    model = schema.pack(result.arrays)
    if not np.isfinite(model).all():
        raise AppError("the first model has values that are not finite")
    return FirstModel(schema, model)


def _update(task: Task, plan: Plan, strategy: Strategy, result: Result, model: Vector | None, private: Private | None) -> Update:
    """A learner's result as a weighted, transformed update; the metric sums scale with the weight."""
    if not result.examples > 0:
        raise AppError("the learner saw no examples", hint="check the dataset with: fedscale node data check")
    weight = float(result.examples)
    delta = np.empty(0, np.float32)
    if task.phase is Phase.TRAIN:
        if result.arrays is None or task.schema is None or model is None:
            raise AppError("the learner returned no trained model", hint="return Result(arrays=...) for phase 'train'")
        with np.errstate(over="ignore"):
            delta = task.schema.flat(result.arrays) if _sums(private) else np.subtract(task.schema.flat(result.arrays), model)
        # Under privacy the number of examples is nobody's business, and one site's noise must hide it as well as another's.
        weight = 1.0 if private is not None or strategy.weighting == "equal" else min(weight, task.layout.weight_cap)
    metrics = {name: np.asarray(sums, np.float64).reshape(-1) * (weight / result.examples) for name, sums in result.metrics.items()}
    update = Update(delta, weight, metrics)
    try:
        update = transform.encode(strategy.transforms, update)
        return update if private is None or private.unit != "node" else replace(update, delta=_bounded(plan, task, update.delta))
    except FloatingPointError as error:
        raise UpdateRejected("an update cannot be transformed", why=str(error)) from None


def _bounded(plan: Plan, task: Task, change: Vector) -> Vector:
    """The change of a whole node, clipped, with its bit where the clip moves."""
    dp = None if plan.privacy is None else rounds.in_round(plan.privacy, task.layout.clip)
    moving = rounds.adaptive(dp)
    return change if dp is None else moving.coded(change) if moving else contribution(change, dp.clip)


def _sums(private: Private | None) -> bool:
    """Whether the learner returned the change itself and no trained model."""
    return private is not None and private.way == "union"
