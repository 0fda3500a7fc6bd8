"""Worker processes that share the model and their sums in memory; nothing is pickled.

Each worker adds its clients' answers to a sum of its own in the ring, where the order of additions does not matter: any
number of workers, and any of them dying, gives the bits of one process that works alone.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from fedscale.errors import RunFailed
from fedscale.events import Answered, Failed, Summed, failure_of
from fedscale.ring import WORD
from fedscale.task import Tasks
from fedscale.torch_learner import give_back
from fedscale.vector import Vector
from fedscale_simulations.engines.crew import Crew, Seat
from fedscale_simulations.engines.desk import Answer, Desk, nothing
from fedscale_simulations.engines.forms import Block, Form, Tick, Waves
from fedscale_simulations.engines.worker import HEAD, LENGTH, message

AHEAD = 2
MOST_LETTERS = 1 << 14  # of names in a message, which so never fills the pipe to a worker that is sending itself
MOST_DEATHS = 3


class Pool:
    """Does blocks of clients in several processes.

    Args:
        desk: where a client's work is done.
        form: how clients are trained.
        workers: how many processes.
    """

    def __init__(self, desk: Desk, form: Form, workers: int) -> None:
        self._desk, self._form, self._workers = desk, form, workers
        self._crew: Crew | None = None
        self._serial = 0

    def work(self, tasks: Tasks, model: Vector | None, wanted: int | None = None, tick: Tick = nothing) -> Iterator[Answer]:
        """Answer the tasks: failures as they happen, and one sum of each worker in the end."""
        if model is None or tasks.schema is None:
            yield from (self._desk.answer(task, model) for task in tasks)
            return
        self._crew = self._crew or Crew(self._desk, self._form, tasks.schema, self._workers)
        self._crew.model[:] = model
        self._serial += 1
        apart = self._desk.apart(tasks.phase)
        patience = self._desk.plan.clients.deadline
        course = Course(self._crew, tasks, self._serial, patience, apart=apart, tick=tick)
        waves = Waves(tasks, None if apart else wanted)
        for wave in waves:
            for answer in course.play([wave.to((node,)) for node in wave.nodes] if apart else self._form.blocks(wave)):
                waves.missing += isinstance(answer, Failed) and not apart
                yield answer
        if not apart:
            yield from course.sums()

    def close(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None


class Course:
    """The course of one round.

    Args:
        crew: the workers.
        tasks: the round's.
        serial: the number of the round in messages.
        patience: how many seconds a client may take, as a node may in a deployment.
        apart: whether the answers are wanted one by one.
        tick: told how many clients are done.
    """

    def __init__(self, crew: Crew, tasks: Tasks, serial: int, patience: float, *, apart: bool, tick: Tick) -> None:
        self._crew, self._serial, self._apart, self._tick = crew, serial, apart, tick
        self._patience = patience
        self._length = tasks.layout.length
        facts = {"phase": str(tasks.phase), "number": tasks.number, "terms": tasks.layout.terms, "model": tasks.model, "apart": apart}
        facts["clip"] = tasks.layout.clip
        self._header = message(b"R", serial, json.dumps(facts).encode())
        self._told: set[str] = set()
        self._deaths = 0
        self._queue: deque[Block] = deque()
        for seat in list(crew.seats):
            self._enter(seat)

    def play(self, blocks: Sequence[Block]) -> Iterator[Answer]:
        """Have blocks done; the answers that are told one by one."""
        self._queue.extend(blocks)
        self._feed()
        give_back()  # while the workers have something to do
        while busy := self._busy():
            heard = wait(list(busy), self._patience * max(seat.outstanding for seat in busy.values()))
            for pipe in heard:
                yield from self._hear(busy[pipe])
            if not heard:
                # Killed, they are heard of as any that die: what hangs is done again, a few times.
                for seat in busy.values():
                    seat.process.kill()
            self._feed()

    def _busy(self) -> dict[Any, Seat]:
        """The workers that have not done all they were given, by their pipes."""
        return {seat.pipe: seat for seat in self._crew.seats if seat.done < len(seat.given)}

    def sums(self) -> Iterator[Summed]:
        """What each worker has added up."""
        for seat in self._crew.seats:
            nodes = tuple(node for block in chain.from_iterable(seat.given) for node in self._included(block))
            if nodes:
                yield Summed(nodes, seat.total[: self._length])

    def _included(self, block: Block) -> Sequence[str]:
        """The clients of a block that have not failed."""
        return [node for node in block.nodes if node not in self._told] if self._told else block.nodes

    def _enter(self, seat: Seat) -> None:
        """Tell a worker of the round."""
        seat.given, seat.done = [], 0
        self._send(seat, self._header)

    def _feed(self) -> None:
        """Give workers their next chunks: large ones at first, single blocks in the end, so that all end together."""
        for seat in list(self._crew.seats):
            while self._queue and len(seat.given) - seat.done < AHEAD:
                most = max(1, MOST_LETTERS // sum(map(len, self._queue[0].nodes)) + len(self._queue[0]))
                size = min(most, max(1, len(self._queue) // (2 * AHEAD * len(self._crew.seats))))
                chunk = [self._queue.popleft() for _ in range(size)]
                seat.given.append(chunk)
                self._send(seat, message(b"C", self._serial, json.dumps([block.nodes for block in chunk]).encode()))

    def _send(self, seat: Seat, content: bytes) -> None:
        """Send to a worker; one that has died is noticed when it is heard."""
        try:
            seat.pipe.send_bytes(content)
        except ConnectionError:
            seat.given = seat.given or [[]]

    def _hear(self, seat: Seat) -> Iterator[Answer]:
        """One message of a worker, or its death."""
        try:
            received = seat.pipe.recv_bytes()
        except (EOFError, ConnectionError):
            self._redo(seat)
            return
        kind, serial = HEAD.unpack_from(received)
        if serial != self._serial:
            return
        if kind == b"D":
            self._count([seat.given[seat.done]], 1)
            seat.done += 1
        elif kind == b"F":
            node, failure = json.loads(received[HEAD.size :])
            yield from self._once(node, Failed(node, failure_of(failure)))
        else:
            begins = HEAD.size + LENGTH.size
            ends = begins + LENGTH.unpack_from(received, HEAD.size)[0]
            node = json.loads(received[begins:ends])
            yield from self._once(node, Answered(node, "", np.frombuffer(received, WORD, offset=ends)))

    def _count(self, chunks: Sequence[Sequence[Block]], sign: int) -> None:
        """Tell of clients whose answers went into a sum, or were lost with it; others are told of one by one."""
        if not self._apart:
            self._tick(sign * sum(len(self._included(block)) for block in chain.from_iterable(chunks)))

    def _once(self, node: str, answer: Answer) -> Iterator[Answer]:
        """An answer, unless it was told before the worker died."""
        if node not in self._told:
            self._told.add(node)
            yield answer

    def _redo(self, seat: Seat) -> None:
        """A worker died: its sum is void, and all that was in it is done again."""
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            seat.process.join()
            raise RunFailed(
                "worker processes die again and again",
                why=f"the last one with exit code {seat.process.exitcode}",
                hint="use fewer workers where memory is short, or engine 'sequential' to see the cause",
            )
        self._count(seat.given[: seat.done], -1)
        again = [block.to(self._included(block)) for block in chain.from_iterable(seat.given)]
        self._queue.extendleft(reversed([block for block in again if len(block)]))
        self._enter(self._crew.replace(seat))
