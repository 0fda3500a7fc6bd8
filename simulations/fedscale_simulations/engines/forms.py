"""The form a client's training takes: alone, or as one of a block.

Blocks are part of what a run computes and not of the machine: the same tasks make the same blocks, whoever works on
them, so any number of processes gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from fedscale.events import Failed
from fedscale.ring import Words
from fedscale.task import Task
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
