"""The form a client's training takes: alone, or as one of a block.

Blocks are part of what a run computes and not of the machine: the same tasks make the same blocks, whoever works on
them, so any number of processes gives the same bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from typing import Protocol, TypeAlias

import numpy as np

from fedscale.causes import attempted
from fedscale.errors import UpdateRejected
from fedscale.events import Failed
from fedscale.learner import Phase
from fedscale.privacy import rounds
from fedscale.privacy.dp import DP
from fedscale.ring import Words, add
from fedscale.sampling import derived_seed
from fedscale.task import Task, Tasks, noise_of
from fedscale.torch_learner import TorchLearner
from fedscale.torch_learner.blocks import Learnt, Trainer
from fedscale.torch_learner.examples import Examples
from fedscale.update import Update
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import TRIES, Desk

Block: TypeAlias = Tasks


@dataclass(frozen=True, slots=True)
class Group:
    """Clients that take the same steps.

    Args:
        tasks: theirs.
        rows: those of each.
    """

    tasks: Tasks
    rows: Sequence[Examples]

    @property
    def first(self) -> Task:
        """The task of the first, in which only its name is not that of all."""
        return self.tasks.task(self.tasks.nodes[0])


class Form(Protocol):
    """A way to train many clients."""

    name: str

    def blocks(self, tasks: Tasks) -> list[Block]:
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

    def blocks(self, tasks: Tasks) -> list[Block]:
        """Every client is a block."""
        return [tasks.to((node,)) for node in tasks.nodes]

    def add(self, block: Block, model: Vector, total: Words) -> list[Failed]:
        """The client's answer, added."""
        return [failed for task in block if (failed := self._desk.add(task, model, total)) is not None]


class Together:
    """Many clients at once, where the app's model allows it: the same steps up to rounding, laid out as one update.

    A block is a part of the cohort; in it, clients that take the same steps go together. Where whole clients are hidden, each
    change is clipped before they are added, and their shares of the noise are one draw. Where anything goes wrong, they are done
    again one by one, to find out with whom.

    Args:
        desk: where a client's work is done.
        learner: the desk's learner.
        trainer: trains clients that go together.
    """

    name = "vectorized"

    def __init__(self, desk: Desk, learner: TorchLearner, trainer: Trainer) -> None:
        self._desk, self._learner, self._trainer = desk, learner, trainer
        self._alone = Alone(desk)

    def blocks(self, tasks: Tasks) -> list[Block]:
        """Clients in the order of their names. Nobody's data are looked at: that is for whoever does the block."""
        if tasks.phase is not Phase.TRAIN:
            return self._alone.blocks(tasks)
        ordered, size = sorted(tasks.nodes), self._trainer.block(len(tasks))
        return [tasks.to(ordered[at : at + size]) for at in range(0, len(ordered), size)]

    def add(self, block: Block, model: Vector, total: Words) -> list[Failed]:
        """The weighted mean of the block's changes, added."""
        if block.phase is not Phase.TRAIN:
            return self._alone.add(block, model, total)
        groups, failed = self.alike(block)
        for group in groups:
            alone = len(group.rows) == 1
            wrong = alone or isinstance(self._desk.guarded(group.tasks.nodes[0], partial(self._add, group, model, total)), Failed)
            failed += self._alone.add(group.tasks, model, total) if wrong else []
        return failed

    def alike(self, block: Block) -> tuple[list[Group], list[Failed]]:
        """The clients of a block that take the same steps, with their rows, and the failures of those whose rows cannot be read."""
        found: dict[int, list[tuple[str, Examples]]] = defaultdict(list)
        failed: list[Failed] = []
        for node in block.nodes:
            rows = self._desk.guarded(node, partial(self._rows, node, block.phase))
            if isinstance(rows, Failed):
                failed.append(rows)
            else:
                found[self._trainer.alike(len(rows))].append((node, rows))
        sized = [(same, self._trainer.most(len(same[0][1]))) for same in found.values()]
        parts = [zip(*same[at : at + size], strict=True) for same, size in sized for at in range(0, len(same), size)]
        return [Group(block.to(nodes), rows) for nodes, rows in parts], failed

    def trained(self, group: Group, model: Vector) -> tuple[Learnt, list[float]]:
        """What clients that take the same steps have learnt, and the weight of each.

        Raises:
            AppError, DataError, UpdateRejected: as a client alone, or because the clients do not go together.
        """
        tasks, seed = group.tasks, self._desk.plan.job.seed
        if tasks.schema is None:
            raise UpdateRejected("there is no model to train")
        dp, equal = self._promise(tasks), self._desk.strategy.weighting == "equal"
        weights = [1.0 if equal else min(float(len(rows)), tasks.layout.weight_cap) for rows in group.rows]
        seeds = [derived_seed(seed, tasks.number, node) for node in tasks.nodes]
        clip = dp.clip if dp else None
        return self._trainer.train(tasks.schema.unpack(model), group.rows, seeds, weights, clip), weights

    def _add(self, group: Group, model: Vector, total: Words) -> None:
        (learnt, weights), first = self.trained(group, model), group.first
        moving = rounds.adaptive(self._promise(group.tasks))
        delta = np.append(learnt.delta, np.float32(np.mean(moving.said(learnt.norms)))) if moving else learnt.delta
        shares = noise_of(first, self._desk.plan, self._desk.private(first), len(weights))
        first.layout.add(Update(delta, sum(weights), {"loss": np.array([learnt.losses @ weights])}), total, len(weights))
        if shares is not None:
            add(total[: first.layout.size], shares)

    def _promise(self, tasks: Tasks) -> DP | None:
        """The plan's privacy, with the clip of the round."""
        dp = self._desk.plan.privacy
        return None if dp is None else rounds.in_round(dp, tasks.layout.clip)

    def _rows(self, node: str, phase: Phase) -> Examples:
        """The rows of a client."""
        return self._learner.examples_of(self._desk.portion(node, phase))


def together(desk: Desk) -> tuple[Together | None, str]:
    """The form in which many clients are trained at once; or nothing and why not."""
    if not isinstance(desk.learner, TorchLearner):
        return None, "the learner is not an App"
    if desk.plan.privacy is not None and desk.plan.privacy.unit != "node":
        return None, "the plan hides the rows of each client"
    if desk.strategy.transforms:
        return None, "the strategy changes each client's update by itself"
    if not desk.strategy.aggregator.linear:
        return None, "the aggregator needs each client's update"
    trainer, why = desk.learner.blocks(desk.plan.train, desk.strategy.proximal, partial(_sample, desk, desk.learner))
    return (Together(desk, desk.learner, trainer) if trainer else None), why


def _sample(desk: Desk, learner: TorchLearner) -> object:
    """What a client has to train on, to see what a batch costs: of the first few the first that can be read."""

    def read(name: str) -> Examples:
        return learner.examples_of(desk.portion(name, Phase.TRAIN))

    names = nsmallest(TRIES, desk.data)
    sound = (name for name in names if not isinstance(attempted(partial(read, name)), Exception))
    return desk.portion(next(sound, names[0]), Phase.TRAIN)


class Waves:
    """The tasks of a round as they are needed: as many as answers are wanted, then one for each that failed.

    Args:
        tasks: all of them, in the order in which the clients answer.
        wanted: how many answers end the round; all, where it is ``None``.
    """

    def __init__(self, tasks: Tasks, wanted: int | None) -> None:
        self._tasks, self._at, self.missing = tasks, 0, len(tasks) if wanted is None else wanted

    def __iter__(self) -> Iterator[Tasks]:
        """One wave after the other; count the failures up in ``missing`` before asking for the next."""
        while self.missing and self._at < len(self._tasks):
            wave = self._tasks.to(self._tasks.nodes[self._at : self._at + self.missing])
            self._at, self.missing = self._at + len(wave), 0
            yield wave


Tick: TypeAlias = Callable[[int], None]
