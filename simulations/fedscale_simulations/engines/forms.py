"""The form a client's training takes: alone, or as one of a block.

Blocks are part of what a run computes and not of the machine: the same tasks make the same blocks, whoever works on
them, so any number of processes gives the same bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Protocol, TypeAlias

import numpy as np

from fedscale.errors import UpdateRejected
from fedscale.events import Failed
from fedscale.learner import Phase
from fedscale.ring import Words
from fedscale.sampling import derived_seed
from fedscale.task import Task
from fedscale.torch_learner import TorchLearner
from fedscale.torch_learner.blocks import Blocks, Learnt
from fedscale.update import Update
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Desk

Block: TypeAlias = Sequence[Task]


class Form(Protocol):
    """A way to train many clients."""

    name: str

    def blocks(self, tasks: Sequence[Task]) -> list[Block]:
        """The tasks in the blocks in which they are done."""

    def add(self, block: Block, model: Vector, total: Words) -> list[Failed]:
        """Add the answers of a block to a sum; the failures of the clients whose answers are not in it."""


class Alone:
    """One client after the other, each laid out by itself.

    Args:
        desk: where a client's work is done.
    """

    name = "sequential"

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def blocks(self, tasks: Sequence[Task]) -> list[Block]:
        """Every client is a block."""
        return [(task,) for task in tasks]

    def add(self, block: Block, model: Vector, total: Words) -> list[Failed]:
        """The client's answer, added."""
        failed = [self._desk.add(task, model, total) for task in block]
        return [failure for failure in failed if failure is not None]


class Together:
    """Many clients at once, where the app's model allows it: the same steps up to rounding, laid out as one update.

    A block in which anything goes wrong is done again one by one, to find out with whom.

    Args:
        desk: where a client's work is done.
        learner: the desk's learner.
        trainer: trains blocks.
    """

    name = "vectorized"

    def __init__(self, desk: Desk, learner: TorchLearner, trainer: Blocks) -> None:
        self._desk, self._learner, self._trainer = desk, learner, trainer
        self._alone, self._sizes = Alone(desk), dict[str, tuple[int, int]]()

    def blocks(self, tasks: Sequence[Task]) -> list[Block]:
        """Clients that take the same steps, in the order of their names."""
        if tasks[0].phase is not Phase.TRAIN:
            return self._alone.blocks(tasks)
        alike: dict[tuple[int, int], list[Task]] = defaultdict(list)
        for task in sorted(tasks, key=attrgetter("node")):
            alike[self._sizes.get(task.node) or self._sized(task)].append(task)
        return [group[at : at + size] for (_, size), group in alike.items() for at in range(0, len(group), size)]

    def add(self, block: Block, model: Vector, total: Words) -> list[Failed]:
        """The weighted mean of the block's changes, added."""
        if block[0].phase is not Phase.TRAIN or len(block) == 1:
            return self._alone.add(block, model, total)
        failed = self._desk.guarded(block[0], lambda: self._add(block, model, total))
        return self._alone.add(block, model, total) if isinstance(failed, Failed) else []

    def trained(self, block: Block, model: Vector) -> tuple[Learnt, list[float]]:
        """What a block of clients of one pace has learnt, and the weight of each.

        Raises:
            AppError, DataError, UpdateRejected: as a client alone, or because the block does not go together.
        """
        layout, seed = block[0].layout, self._desk.plan.job.seed
        if block[0].schema is None:
            raise UpdateRejected("there is no model to train")
        examples = [self._learner.examples_of(self._desk.portion(task.node, task.phase)) for task in block]
        equal = self._desk.strategy.weighting == "equal"
        weights = [1.0 if equal else min(float(len(rows)), layout.weight_cap) for rows in examples]
        seeds = [derived_seed(seed, task.number, task.node) for task in block]
        return self._trainer.train(block[0].schema.unpack(model), examples, seeds, weights), weights

    def _add(self, block: Block, model: Vector, total: Words) -> None:
        learnt, weights = self.trained(block, model)
        block[0].layout.add(Update(learnt.delta, sum(weights), {"loss": np.array([learnt.losses @ weights])}), total, len(block))

    def _sized(self, task: Task) -> tuple[int, int]:
        """The steps of a client and how many like it make a block; a client whose data cannot be read works alone and says so."""
        counted = self._desk.guarded(task, lambda: len(self._learner.examples_of(self._desk.portion(task.node, task.phase))))
        if not isinstance(counted, int):
            return 0, 1
        pace = self._trainer.pace(counted)
        self._sizes[task.node] = pace.steps, self._trainer.most(pace)
        return self._sizes[task.node]


def together(desk: Desk) -> tuple[Together | None, str]:
    """The form in which many clients are trained at once; or nothing and why not."""
    if not isinstance(desk.learner, TorchLearner):
        return None, "the learner is not an App"
    if desk.plan.privacy is not None:
        return None, "the plan asks for privacy"
    if desk.strategy.transforms:
        return None, "the strategy changes each client's update by itself"
    if not desk.strategy.aggregator.linear:
        return None, "the aggregator needs each client's update"
    trainer, why = desk.learner.blocks(desk.plan.train, desk.strategy.proximal)
    return (Together(desk, desk.learner, trainer) if trainer else None), why


class Waves:
    """The tasks of a round as they are needed: as many as answers are wanted, then one for each that failed.

    Args:
        tasks: all of them, in the order in which the clients answer.
        wanted: how many answers end the round; all, where it is ``None``.
    """

    def __init__(self, tasks: Sequence[Task], wanted: int | None) -> None:
        self._tasks, self._at, self.missing = tasks, 0, len(tasks) if wanted is None else wanted

    def __iter__(self) -> Iterator[Sequence[Task]]:
        """One wave after the other; count the failures up in ``missing`` before asking for the next."""
        while self.missing and self._at < len(self._tasks):
            wave = self._tasks[self._at : self._at + self.missing]
            self._at, self.missing = self._at + len(wave), 0
            yield wave


Tick: TypeAlias = Callable[[int], None]
