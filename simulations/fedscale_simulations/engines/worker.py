"""A worker process of the pool: takes blocks of clients from a pipe, adds their answers to a sum in shared memory.

Messages are raw bytes: one letter, the number of the round they belong to, then what the letter says. To a worker:
``R`` a round begins, JSON; ``C`` clients to work on, their positions as 32-bit integers, ``END`` after each block.
From a worker: ``F`` a client failed, JSON; ``A`` a client's answer, its position and the words; ``D`` the clients of
one ``C`` are done.
"""

from __future__ import annotations

import gc
import json
import signal
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from fedscale.events import Answered, Failed, Initialized
from fedscale.learner import Phase
from fedscale.ring import Words
from fedscale.task import Task, layout_for
from fedscale.torch_learner import settle_fork
from fedscale.vector import Schema, Vector
from fedscale_simulations.engines.desk import Desk
from fedscale_simulations.engines.forms import Form

HEAD = struct.Struct("<cI")
POSITION = struct.Struct("<I")
END = 0xFFFFFFFF


def message(kind: bytes, serial: int, content: bytes = b"") -> bytes:
    """A message as it goes through the pipe."""
    return HEAD.pack(kind, serial) + content


class Worker:
    """What runs in the process.

    Args:
        desk: where a client's work is done.
        form: how clients are trained.
        names: all clients, by position.
        schema: the model's parts.
        model: the global model, in shared memory.
        total: this worker's sum, in shared memory.
    """

    def __init__(self, desk: Desk, form: Form, names: Sequence[str], schema: Schema, model: Vector, total: Words) -> None:
        self._desk, self._form, self._names, self._schema, self._model, self._total = desk, form, names, schema, model, total
        self._round: dict[str, Any] = {}
        self._serial = 0

    def serve(self, pipe: Connection, others: Sequence[Connection]) -> None:
        """Work until the pipe is closed, which it is when the process at the other end dies."""
        settle_fork()
        gc.freeze()  # collecting garbage would write into, and so copy, every page with an object of the process it was forked from
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started the simulation
        for other in others:
            other.close()
        with suppress(EOFError, ConnectionError):
            while True:
                received = pipe.recv_bytes()
                kind, serial = HEAD.unpack_from(received)
                if kind == b"R":
                    self._begin(serial, json.loads(received[HEAD.size :]))
                else:
                    self._work(pipe, np.frombuffer(received, np.uint32, offset=HEAD.size) if len(received) > HEAD.size else np.empty(0, np.uint32))

    def _begin(self, serial: int, facts: dict[str, Any]) -> None:
        """A new round: whatever was in the sum is void."""
        self._serial, self._round = serial, facts
        self._phase = Phase(facts["phase"])
        self._layout = layout_for(self._desk.plan, self._phase, self._schema.size, facts["terms"], facts["clip"])
        self._sum = self._total[: self._layout.length]
        self._sum[:] = 0

    def _work(self, pipe: Connection, positions: npt.NDArray[np.uint32]) -> None:
        """The blocks of one message."""
        block: list[Task] = []
        places: dict[str, int] = {}
        for position in positions.tolist():
            if position != END:
                block.append(self._task(position))
                places[block[-1].node] = position
                continue
            for answer in self._done(block):
                if isinstance(answer, Answered) and answer.words is not None:
                    pipe.send_bytes(message(b"A", self._serial, POSITION.pack(places[answer.node]) + answer.words[:].tobytes()))
                elif isinstance(answer, Failed):
                    pipe.send_bytes(message(b"F", self._serial, json.dumps([answer.node, asdict(answer.failure)]).encode()))
            block = []
        pipe.send_bytes(message(b"D", self._serial))

    def _done(self, block: list[Task]) -> Sequence[Answered | Initialized | Failed]:
        """What is to be told of a block."""
        if self._round["apart"]:
            return [self._desk.answer(task, self._model) for task in block]
        return self._form.add(block, self._model, self._sum)

    def _task(self, position: int) -> Task:
        """The task of a client in this round."""
        facts = self._round
        return Task(self._names[position], self._phase, facts["number"], self._layout, self._schema, facts["model"])
