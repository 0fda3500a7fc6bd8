"""The worker processes of a pool and the memory they share."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fedscale.learner import Phase
from fedscale.ring import WORD, Words
from fedscale.task import layout_for
from fedscale.torch_learner import TorchLearner
from fedscale.vector import Schema, Vector
from fedscale_simulations.engines.desk import Desk
from fedscale_simulations.engines.forms import Block, Form
from fedscale_simulations.engines.worker import Worker


@dataclass(slots=True, eq=False)
class Seat:
    """One worker and what it is at.

    Args:
        process: the worker process.
        pipe: our end of the pipe to it.
        total: its sum, in shared memory.
        given: the chunks it got in this round; the first ``done`` of them are in its sum.
    """

    process: Any
    pipe: Connection
    total: Words
    given: list[list[Block]] = field(default_factory=list)
    done: int = 0

    @property
    def outstanding(self) -> int:
        """How many clients it may still be at work on; 1 where only its pipe is to be read."""
        return sum(len(block) for chunk in self.given[self.done :] for block in chunk) or 1


class Crew:
    """Forks workers, which so have the app and the data as they are, and gives each a sum of its own in shared memory.

    Args:
        desk: where a client's work is done.
        form: how clients are trained.
        schema: the model's parts.
        workers: how many processes.
    """

    def __init__(self, desk: Desk, form: Form, schema: Schema, workers: int) -> None:
        self._desk, self._form, self._schema = desk, form, schema
        if isinstance(desk.learner, TorchLearner):
            desk.learner.warm(desk.plan.train.device)  # so that all workers have the same kernels, and none builds the module again
        longest = max(layout_for(desk.plan, phase, schema.size, 1).length for phase in (Phase.TRAIN, Phase.EVALUATE))
        shared = np.frombuffer(mmap.mmap(-1, WORD.itemsize * (schema.size + workers * longest)), WORD)
        self.model: Vector = shared[: schema.size].view(np.float32)
        self.seats: list[Seat] = []
        for total in shared[schema.size :].reshape(workers, longest):
            self.seats.append(self._seat(total))

    def replace(self, seat: Seat) -> Seat:
        """A new worker in the place of one that died."""
        seat.pipe.close()
        seat.process.join()
        at = self.seats.index(seat)
        self.seats[at] = self._seat(seat.total)
        return self.seats[at]

    def close(self) -> None:
        """End the workers; one that is at work is not waited for."""
        for seat in self.seats:
            seat.pipe.close()
            seat.process.kill()
        for seat in self.seats:
            seat.process.join()
        self.seats = []

    def _seat(self, total: Words) -> Seat:
        """A new worker."""
        context = get_context("fork")
        ours, theirs = context.Pipe()
        others = [ours, *(seat.pipe for seat in self.seats if not seat.pipe.closed)]
        worker = Worker(self._desk, self._form, self._schema, self.model, total)
        process = context.Process(target=worker.serve, args=(theirs, others), daemon=True)
        process.start()
        theirs.close()
        return Seat(process, ours, total)
