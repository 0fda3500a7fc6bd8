"""One block of virtual clients after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedscale.events import Summed
from fedscale.ring import WORD
from fedscale.task import Tasks
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Answer, Desk, nothing
from fedscale_simulations.engines.forms import Form, Tick, Waves


class Sequential:
    """Does one block after the other. With every client alone, this is the reference that all else must match.

    Args:
        desk: where a client's work is done.
        form: how clients are trained.
    """

    def __init__(self, desk: Desk, form: Form) -> None:
        self._desk, self._form = desk, form

    def work(self, tasks: Tasks, model: Vector | None, wanted: int | None = None, tick: Tick = nothing) -> Iterator[Answer]:
        """Answer the tasks in the order given, in one sum where nobody needs to see them apart."""
        if not tasks or model is None or self._desk.apart(tasks.phase):
            yield from (self._desk.answer(task, model) for task in tasks)
            return
        total, done, waves = np.zeros(tasks.layout.length, WORD), list[str](), Waves(tasks, wanted)
        for wave in waves:
            for block in self._form.blocks(wave):
                failed = self._form.add(block, model, total)
                yield from failed
                out = [failure.node for failure in failed]
                done += [node for node in block.nodes if node not in out]
                waves.missing += len(failed)
                tick(len(block) - len(failed))
        if done:
            yield Summed(tuple(done), total)

    def close(self) -> None:
        """Nothing to give back."""
