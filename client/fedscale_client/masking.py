"""A node's part in secure aggregation: its machine for each round, fed from the control stream, and what it must never forget.

Nothing that the server says is believed: the roster is checked against the authority that this node pinned when it joined
and against the keys it has seen before, the terms are computed from the task as this node understands it. Before a masked
vector or an unmask answer leaves, what it proves is on disk; so a node that restarts never gives a second one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedscale import files
from fedscale.errors import Cause, Failure, FedscaleError, PolicyRefusal
from fedscale.identity import load_certificate
from fedscale.learner import Phase
from fedscale.masked import Ground, terms_for
from fedscale.ring import WORD, Words
from fedscale.secagg import prg
from fedscale.secagg.authority import check_pins, claim, opened
from fedscale.secagg.node import MaskedInput, Reply, Site, request_digest
from fedscale.secagg.node import Node as Machine
from fedscale.secagg.terms import Mark, Policy
from fedscale.wire.convert import Key
from fedscale_client import failures, policy
from fedscale_client.answers import Answer
from fedscale_client.connection import Assignment
from fedscale_client.home import NodeHome, read_toml, write_toml
from fedscale_client.keys import identity_key

MOST_SEATS = 64
SUFFIX = ".masked"


@dataclass(eq=False, slots=True)
class Seat:
    """This node in one round.

    Args:
        machine: the protocol; ``None`` before it is made.
        turn: messages are taken one by one, in order.
        due: set once the vector is due, or never will be.
        failure: why the node left the round.
    """

    machine: Machine | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    due: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Failure | None = None


class Masking:
    """Secure aggregation at one node.

    Args:
        home: the node's identity, its memory and its policy.
        speak: sends the server an answer to the message of a step.
        leave: told when the node leaves a round, and why.
    """

    def __init__(self, home: NodeHome, speak: Callable[[Key, str, bytes], None], leave: Callable[[Key, Failure], None]) -> None:
        self._home, self._speak, self._leave = home, speak, leave
        self._name, self._key = home.settings().name, identity_key(home)
        self._core = prg.choose(time.perf_counter)
        self._seats: dict[Key, Seat] = {}

    def identity(self) -> bytes:
        """What proves this node's identity key to the server."""
        return claim(self._key, self._name)

    def asked(self, assignment: Assignment) -> Seat | None:
        """The seat for a task under secure aggregation, taken if need be; ``open`` makes it ready. ``None`` for any other task."""
        key = assignment.key
        if not assignment.plan.secagg.enabled or key[1] is Phase.INIT:
            return None
        if key not in self._seats:
            for other in [k for k in self._seats if k[0] == key[0]] + list(self._seats)[: len(self._seats) - MOST_SEATS + 1]:
                self.forget(other)
            self._seats[key] = Seat()
        return self._seats[key]

    async def open(self, assignment: Assignment, seat: Seat) -> None:
        """Check roster and terms; afterwards the server's messages are taken."""
        async with seat.turn:
            if seat.machine is None and seat.failure is None:
                try:
                    seat.machine = await asyncio.to_thread(self._machine, assignment)
                except (FedscaleError, OSError) as error:
                    self._refuse(assignment.key, seat, error)

    async def told(self, key: Key, step: str, data: bytes) -> None:
        """Answer a message of the server, or leave the round."""
        seat = self._seats.get(key) or Seat()
        async with seat.turn:
            if seat.failure is not None:
                return
            try:
                reply = await asyncio.to_thread(self._reply, key[0], seat.machine, data)
            except (FedscaleError, OSError) as error:
                self._refuse(key, seat, error)
                return
            if seat.machine is not None and isinstance(seat.machine.state, MaskedInput):
                seat.due.set()
        if reply is not None:
            self._speak(key, step, reply.message)

    async def mask(self, seat: Seat, answer: Answer, deadline: float, begin: Callable[[], None] = lambda: None) -> Answer | Failure:
        """An answer under its masks, in a file of its own; the one in the clear is gone, however this ends.

        Args:
            seat: where the node sits in this round.
            answer: what the worker has left.
            deadline: when to give up, in the event loop's time.
            begin: called when all nodes have agreed on masks.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await seat.due.wait()
            async with seat.turn:
                if seat.failure is not None:
                    return seat.failure
                begin()
                return await self._carried(seat.machine, answer)
        except TimeoutError:
            return Failure(Cause.TIMEOUT, "the other nodes did not agree on masks by the task's deadline", hint="raise clients.deadline")
        except (FedscaleError, OSError) as error:
            return _failure(error)
        finally:
            answer.forget()

    async def _carried(self, machine: Machine | None, answer: Answer) -> Answer:
        """``_masked`` in a thread, which nobody can stop: what it leaves when the task is dropped meanwhile is removed."""
        masking = asyncio.create_task(asyncio.to_thread(self._masked, machine, answer))
        try:
            return await asyncio.shield(masking)
        except asyncio.CancelledError:
            masking.add_done_callback(_unwanted)
            raise

    def forget(self, key: Key) -> None:
        """The round is over for this node."""
        self._seats.pop(key, None)

    def _refuse(self, key: Key, seat: Seat, error: FedscaleError | OSError) -> None:
        """Leave a round, once, and say why."""
        seat.failure = _failure(error)
        seat.due.set()
        self._leave(key, seat.failure)

    # --------------------------------------------------------------------------------------------------- blocking, in threads

    def _machine(self, assignment: Assignment) -> Machine:
        """The machine for a round, everything about it computed or checked here."""
        key, task = assignment.key, assignment.task
        if task.schema is None:
            raise PolicyRefusal("secure aggregation without a model")
        roster = opened(*assignment.roster, load_certificate(self._home.authority_file.read_bytes()).public_key())
        self._pin(check_pins(roster, self._pins()))
        terms = terms_for(Ground(key[0], assignment.bundle), assignment.plan, task.phase, task.number, task.layout, task.schema, task.model, roster)
        rules = policy.load(self._home)
        site = Site(self._name, self._key, roster, Policy(cohort=rules.min_cohort, curious=rules.curious_server), core=self._core)
        return Machine(site, terms, self._mark(key[0]))

    def _reply(self, run: str, machine: Machine | None, data: bytes) -> Reply | None:
        """What to say; a node that has lost its secrets in a restart can only repeat the answer it gave before.

        Raises:
            PolicyRefusal: it gave none, or to another request.
        """
        if machine is not None:
            reply = machine.handle(data)
            return reply and self._remembered(reply)
        mark = self._mark(run)
        if mark is None or mark.request != request_digest(data):
            raise PolicyRefusal("the node was restarted in this round of secure aggregation", why="its secrets were in memory only")
        return Reply(mark.answer, mark=mark)

    def _masked(self, machine: Machine | None, answer: Answer) -> Answer:
        """Mask and write, then remember; neither vector is ever whole in memory."""
        if machine is None:
            raise PolicyRefusal("a vector without a round to give it in")
        path, digest = answer.path.with_suffix(SUFFIX), hashlib.sha256()
        try:
            with path.open("wb") as file:

                def write(piece: bytes | memoryview) -> None:
                    digest.update(piece)
                    file.write(piece)

                reply = machine.submit(_mapped(answer.path), write)
                write(bytes(-file.tell() % WORD.itemsize))
                size = file.tell()
            self._remembered(reply)
        except (FedscaleError, OSError):
            path.unlink(missing_ok=True)
            raise
        return Answer(path, digest.hexdigest(), size)

    def _remembered(self, reply: Reply) -> Reply:
        """A reply, once it is on disk how far the node has gone."""
        if reply.mark is not None:
            files.private_folder(self._home.secagg)
            files.write(self._mark_file(reply.mark.run), reply.mark.encode())
        return reply

    def _mark(self, run: str) -> Mark | None:
        """What is on disk of a run; nothing before its first vector."""
        file = self._mark_file(run)
        return Mark.decode(file.read_bytes()) if file.exists() else None

    def _mark_file(self, run: str) -> Path:
        """Where it lies: the server chose the run's name, so it is no file name."""
        return self._home.secagg / f"{hashlib.sha256(run.encode()).hexdigest()[:32]}.mark"

    def _pins(self) -> dict[str, str]:
        """The identity keys that were seen before, by name."""
        file = self._home.secagg / "members.toml"
        return {name: str(key) for name, key in read_toml(file).items()} if file.exists() else {}

    def _pin(self, fresh: dict[str, str]) -> None:
        """Remember keys that were seen for the first time."""
        if fresh:
            files.private_folder(self._home.secagg)
            write_toml(self._home.secagg / "members.toml", {**self._pins(), **fresh})


def _mapped(path: Path) -> Words:
    """The words of a file; nothing for one that does not hold whole words."""
    size = path.stat().st_size
    return np.memmap(path, WORD, "r") if size and size % WORD.itemsize == 0 else np.empty(0, WORD)


def _unwanted(masking: asyncio.Task[Answer]) -> None:
    """Remove a vector that nobody waits for any more."""
    if not masking.cancelled() and masking.exception() is None:
        masking.result().forget()


def _failure(error: FedscaleError | OSError) -> Failure:
    """Why the node left; a message that does not fit is refused like one that the owner does not allow."""
    failure = failures.of_local(error)
    return replace(failure, cause=Cause.POLICY) if failure.cause is Cause.NETWORK else failure
