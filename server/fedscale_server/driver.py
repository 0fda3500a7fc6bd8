"""Drives one run: every event is made durable first, then its effects are carried out.

The run is the pure state machine of the core, the logbook what survives of it. What is here is the living rest: timers,
the control streams of the nodes and the watchers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from fedscale.errors import Cause, Failure, FedscaleError, ProtocolError, UpdateRejected
from fedscale.events import Answered, Arm, Assign, Effect, Event, Failed, Finish, Fired, Gather, Initialized, Lost, Release, Returned, Roster, Stop
from fedscale.learner import Phase
from fedscale.proto.v1 import bulk_pb2, node_pb2
from fedscale.ring import WORD
from fedscale.round import PENDING, Place
from fedscale.run import RUNNING
from fedscale.task import Task
from fedscale.vector import Schema
from fedscale.wire.convert import Key, assignment_to_proto, key_to_proto
from fedscale.wire.limits import SILENCE_SECONDS
from fedscale_server.feed import Feed, run_event

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale_server.logbook import Entry, Logbook
    from fedscale_server.sessions import Sessions

log = structlog.get_logger()
Receipt = bulk_pb2.Receipt


class Driver:
    """One run and its world.

    Args:
        book: the run and its durable half.
        sessions: who is connected.
        clock: where timestamps come from.
        finished: called once the run is over.
    """

    def __init__(self, book: Logbook, sessions: Sessions, clock: Clock, finished: Callable[[Driver], None]) -> None:
        self.book, self.feed = book, Feed()
        self._sessions, self._clock, self._finished = sessions, clock, finished
        self._lock = asyncio.Lock()
        self._pending: deque[Event] = deque()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[bool]] = set()
        self._needed = 0

    @property
    def id(self) -> str:
        """The run's id."""
        return self.book.row.id

    async def start(self) -> None:
        """Carry out what the run wants, at its beginning or after a restart."""
        async with self._lock:
            self._perform(self.book.run.begin())
            await self._drain()

    def halt(self) -> None:
        """The server stops: no more timers, watchers are let go; the run goes on when the server is back."""
        self._cancel_timers()
        self.feed.close()

    async def handle(self, event: Event, unique: str | None = None, detail: dict[str, Any] | None = None) -> bool:
        """Take one event; ``False`` when its ``unique`` name was taken before."""
        async with self._lock:
            taken = await self._step(event, unique, detail)
            await self._drain()
            return taken

    def soon(self, event: Event) -> None:
        """Take an event from a place that cannot wait for it."""
        task = asyncio.get_running_loop().create_task(self.handle(event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        while self._pending:
            await self._step(self._pending.popleft(), None, None)

    async def _step(self, event: Event, unique: str | None, detail: dict[str, Any] | None) -> bool:
        """Journal, handle, publish, perform. Whatever goes wrong here ends this run, loudly, and no other."""
        run = self.book.run
        if run.status != RUNNING:
            return False
        step = (run.phase, run.number)
        try:
            applied = await asyncio.to_thread(self.book.apply, event, self._clock.now(), unique, detail)
        except Exception as error:
            log.exception("a run cannot go on", run=self.id)
            reason = str(error) if isinstance(error, FedscaleError) else f"the server met {type(error).__name__}; see its log"
            applied = await asyncio.to_thread(self.book.apply, Stop(f"server: {reason}"), self._clock.now())
        if applied is None:
            return False
        effects, entries = applied
        for entry in entries:
            self._publish(entry)
        if (run.phase, run.number) != step or isinstance(event, Roster):
            self._cancel_timers()
        self._perform(effects)
        return True

    def _publish(self, entry: Entry) -> None:
        """Show an entry of the journal to the watchers."""
        self.feed.publish(run_event(entry.seq, entry.at.timestamp(), entry.kind, (entry.phase, entry.number), entry.detail, entry.node))

    def passing(self, kind: str, key: Key, node: str, detail: dict[str, Any]) -> None:
        """Show watchers a sign of life that is not worth a line in the journal."""
        if key[1:] == (self.book.run.phase, self.book.run.number):
            self.feed.publish(run_event(0, self._clock.now().timestamp(), kind, (str(key[1]), key[2]), detail, node))

    def _perform(self, effects: list[Effect]) -> None:
        """Carry out what need not survive a crash."""
        for effect in effects:
            if isinstance(effect, Gather):
                self._needed = effect.at_least
                self._gather()
            elif isinstance(effect, Assign):
                self._assign(effect.task)
            elif isinstance(effect, Release):
                key = key_to_proto((self.id, Phase(effect.phase), effect.number))
                self._sessions.send(effect.node, node_pb2.ServerMessage(release=node_pb2.Release(key=key)))
            elif isinstance(effect, Arm):
                self._later(effect.timer, effect.seconds, partial(self.soon, Fired(effect.timer)))
            elif isinstance(effect, Finish):
                self.halt()
                self._finished(self)

    def _gather(self) -> None:
        """Send the run its roster when enough nodes are there."""
        nodes = self._sessions.eligible(self.book.row.project, self.book.plan.job.data)
        if self._needed and len(nodes) >= self._needed:
            self._needed = 0
            self._pending.append(Roster(nodes))
        elif self._needed:
            where = (str(self.book.run.phase), self.book.run.number)
            self.feed.publish(run_event(0, self._clock.now().timestamp(), "gathering", where, {"needed": self._needed, "there": list(nodes)}))

    def _assign(self, task: Task) -> None:
        """Send a task; a node that is away gets it when it connects, and is lost if it stays away."""
        message = assignment_to_proto(self.id, task, self.book.row.plan, self.book.row.bundle, self.book.plan.clients.deadline)
        if not self._sessions.send(task.node, node_pb2.ServerMessage(assignment=message)):
            self._later(f"absent/{task.node}", SILENCE_SECONDS, partial(self._absent, task.node))

    def _absent(self, node: str) -> None:
        if self._sessions.get(node) is None:
            self.soon(Lost(node))

    def _cancel_timers(self) -> None:
        """Timers belong to one step of the run and end with it."""
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()

    def _later(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        """Run an action later, in place of an earlier one of the same name."""
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, action)

    async def connected(self, node: str) -> None:
        """A node is there: it may complete the roster, come back to its round, or get its task again."""
        async with self._lock:
            run = self.book.run
            place = run.round.places.get(node) if run.round else None
            if place is Place.LOST:
                self._pending.append(Returned(node))
            elif run.round is not None and place is Place.ASKED:
                self._assign(run.round.task(node))
            elif run.asked == node:
                self._perform([e for e in run.begin() if isinstance(e, Assign)])
            elif self._needed:
                self._gather()
            await self._drain()

    async def disconnected(self, node: str) -> None:
        """A node's stream broke; only a node that still owes something matters."""
        run = self.book.run
        if run.asked == node or (run.round is not None and run.round.places.get(node) is Place.ASKED):
            await self.handle(Lost(node))

    def owes(self, key: Key, node: str) -> bool:
        """Whether this very answer is still wanted from this node."""
        run = self.book.run
        if run.status != RUNNING or key[1:] != (run.phase, run.number):
            return False
        return run.asked == node if run.round is None else run.round.places.get(node) in PENDING

    def expected(self, key: Key, schema: str) -> int:
        """Exact size in bytes of the answer to a task.

        Raises:
            ProtocolError: the schema of a first model is malformed.
        """
        if key[1] is Phase.INIT:
            return WORD.itemsize * Schema.from_json(schema).size
        return self.book.run.round.terms.layout.nbytes if self.book.run.round else 0

    async def failed(self, key: Key, node: str, failure: Failure) -> None:
        """A node reported that it cannot answer."""
        if self.owes(key, node):
            await self.handle(Failed(node, failure), detail=asdict(failure))

    async def answered(self, key: Key, node: str, staged: Path, digest: str, schema: str) -> Receipt:
        """Check, keep and count an answer that has arrived completely."""
        async with self._lock:
            try:
                event = await asyncio.to_thread(self._checked, key, node, staged, digest, schema)
            except (UpdateRejected, ProtocolError) as error:
                event = Failed(node, Failure(Cause.REJECTED, error.what, error.where, error.hint))
            if event is None:
                return self.receipt(key, node, digest)
            detail = asdict(event.failure) if isinstance(event, Failed) else {"bytes": self.expected(key, schema)}
            taken = await self._step(event, None if isinstance(event, Failed) else "/".join((*map(str, key[1:]), node)), detail)
            await self._drain()
        if isinstance(event, Failed):
            return Receipt(verdict=Receipt.REJECTED, reason=str(event.failure))
        return Receipt(verdict=Receipt.ACCEPTED) if taken else Receipt(verdict=Receipt.CLOSED, reason="the run is over")

    def _checked(self, key: Key, node: str, staged: Path, digest: str, schema: str) -> Event | None:
        """The event of a sound answer, its content durable; ``None`` when it is not wanted any more. Blocks."""
        spool, run = self.book.spool, self.book.run
        if not self.owes(key, node):
            return None
        if run.round is None:
            model = np.fromfile(staged, "<f4")
            if not np.isfinite(model).all():
                raise UpdateRejected("the first model has values that are not finite")
            spool.blobs.adopt(staged, digest)
            return Initialized(node, schema, digest, model)
        run.round.terms.layout.check(spool.words(staged))
        target = spool.answer(str(key[1]), key[2], node, digest)
        spool.keep(staged, target)
        return Answered(node, digest, spool.words(target))

    def receipt(self, key: Key, node: str, digest: str) -> Receipt:
        """What to say to an answer that is not wanted: sent before, or too late."""
        current = self.book.run.round
        again = current is not None and key[1:] == (current.terms.phase, current.terms.number) and current.places.get(node) is Place.ANSWERED
        if again and self.book.spool.answer(str(key[1]), key[2], node, digest).exists():
            return Receipt(verdict=Receipt.DUPLICATE)
        if again:
            return Receipt(verdict=Receipt.REJECTED, reason="another answer of this node was accepted for this round")
        return Receipt(verdict=Receipt.CLOSED, reason="the round is over or does not ask this node")
