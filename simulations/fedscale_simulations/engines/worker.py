"""A worker process of the pool: takes blocks of clients from a pipe, adds their answers to a sum in shared memory.

Messages are raw bytes: one letter, the number of the round they belong to, then what the letter says. To a worker:
``R`` a round begins, JSON; ``C`` clients to work on, the names of each block, JSON. From a worker: ``F`` a client failed,
JSON; ``A`` a client's answer, the length of its name, the name in JSON and the words; ``D`` the clients of one ``C`` are
done.
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

from fedscale.events import Answered, Failed, Initialized
from fedscale.learner import Phase
from fedscale.ring import Words
from fedscale.task import Tasks, layout_for
from fedscale.torch_learner import Ceiling, settle_fork
from fedscale.vector import Schema, Vector
from fedscale_simulations.engines.desk import Desk
from fedscale_simulations.engines.forms import Form

HEAD = struct.Struct("<cI")
LENGTH = struct.Struct("<I")


def message(kind: bytes, serial: int, content: bytes = b"") -> bytes:
    """A message as it goes through the pipe."""
    return HEAD.pack(kind, serial) + content


class Worker:
    """What runs in the process.

    Args:
        desk: where a client's work is done.
        form: how clients are trained.
        schema: the model's parts.
        model: the global model, in shared memory.
        total: this worker's sum, in shared memory.
    """

    def __init__(self, desk: Desk, form: Form, schema: Schema, model: Vector, total: Words) -> None:
        self._desk, self._form, self._schema, self._model, self._total = desk, form, schema, model, total
        self._round: dict[str, Any] = {}
        self._serial, self._ceiling = 0, Ceiling()

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
                said = json.loads(received[HEAD.size :])
                if kind == b"R":
                    self._begin(serial, said)
                else:
                    self._work(pipe, said)

    def _begin(self, serial: int, facts: dict[str, Any]) -> None:
        """A new round: whatever was in the sum is void."""
        self._serial, self._round = serial, facts
        self._phase = Phase(facts["phase"])
        self._layout = layout_for(self._desk.plan, self._phase, self._schema.size, facts["terms"], facts["clip"])
        self._sum = self._total[: self._layout.length]
        self._sum[:] = 0

    def _work(self, pipe: Connection, blocks: Sequence[Sequence[str]]) -> None:
        """The blocks of one message."""
        for names in blocks:
            for answer in self._done(self._tasks(names)):
                if isinstance(answer, Answered) and answer.words is not None:
                    name = json.dumps(answer.node).encode()
                    pipe.send_bytes(message(b"A", self._serial, LENGTH.pack(len(name)) + name + answer.words[:].tobytes()))
                elif isinstance(answer, Failed):
                    pipe.send_bytes(message(b"F", self._serial, json.dumps([answer.node, asdict(answer.failure)]).encode()))
        pipe.send_bytes(message(b"D", self._serial))
        self._ceiling.hold()

    def _done(self, block: Tasks) -> Sequence[Answered | Initialized | Failed]:
        """What is to be told of a block."""
        if self._round["apart"]:
            return [self._desk.answer(task, self._model) for task in block]
        return self._form.add(block, self._model, self._sum)

    def _tasks(self, names: Sequence[str]) -> Tasks:
        """The tasks of clients in this round."""
        facts = self._round
        return Tasks(names, self._phase, facts["number"], self._layout, self._schema, facts["model"])
