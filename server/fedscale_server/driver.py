"""Drives one run: every event is made durable first, then its effects are carried out.

The run is the pure state machine of the core, the logbook what survives of it. What is here is the living rest: timers,
the control streams of the nodes and the watchers.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import deque
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from fedscale.errors import Cause, Failure, FedscaleError, NotFound, ProtocolError, Unreachable, UpdateRejected
from fedscale.events import (
    Answered,
    Arm,
    Assign,
    Effect,
    Event,
    Failed,
    Finish,
    Fired,
    Gather,
    Initialized,
    Lost,
    Release,
    Returned,
    Roster,
    Spoke,
    Stop,
    Tell,
)
from fedscale.lanes import MASK, UNMASK
from fedscale.learner import Phase
from fedscale.masked import LATE
from fedscale.proto.v1 import bulk_pb2, node_pb2
from fedscale.ring import WORD, Extremes
from fedscale.round import Place, Round
from fedscale.run import RUNNING
from fedscale.task import Tasks
from fedscale.vector import Schema, finite
from fedscale.wire.convert import Key, assignment_to_proto, key_to_proto, told_to_proto
from fedscale.wire.limits import SILENCE_SECONDS
from fedscale_server.feed import End, Feed, run_event
from fedscale_server.logbook import Line
from fedscale_server.spool import mapped
from fedscale_server.stances import MOST_SECONDS, Stances
from fedscale_server.timers import Timers
from fedscale_server.uploads import Arrived
from fedscale_server.work import Errands, World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedscale.proto.v1 import control_pb2 as pb
    from fedscale_server.logbook import Entry, Logbook

log = structlog.get_logger()
Receipt = bulk_pb2.Receipt


class Driver:
    """One run and its world.

    Args:
        book: the run and its durable half.
        world: the server around it.
    """

    def __init__(self, book: Logbook, world: World) -> None:
        self.book, self._world, self.feed, self.errands = book, world, Feed(), Errands()
        self._lock = asyncio.Lock()
        self._pending: deque[Event] = deque()
        self._heard: list[Line] = []
        self._timers = Timers()
        self._needed = 0
        self._stances = Stances(book, world.sessions)
        self._aside = False
        self._signature: tuple[Round | None, bytes] = (None, b"")

    @property
    def id(self) -> str:
        """The run's id."""
        return self.book.row.id

    async def start(self) -> None:
        """Carry out what the run wants, at its beginning or after a restart."""
        await self.errands.begin(self._start())

    async def _start(self) -> None:
        async with self._lock:
            run = self.book.run
            self._perform(run.begin())
            if run.asked:
                # After a restart everybody is away; whoever was making the first model has the time of any lost node to come back.
                self._timers.arm(f"absent/{run.asked}", max(self.book.plan.clients.rejoin, SILENCE_SECONDS), partial(self._absent, run.asked))
            await self._drain()

    def halt(self, end: End = End.DOWN) -> None:
        """No more timers, and watchers are let go; a run that is not over goes on when the server is back."""
        self._timers.stop()
        self.feed.close(end)

    async def handle(self, event: Event, unique: str | None = None, detail: dict[str, Any] | None = None) -> bool:
        """Take one event; ``False`` when its ``unique`` name was taken before, or the run is over.

        Raises:
            Unreachable: it cannot be stored at the moment.
        """
        taken = await self.errands.begin(self._handle(event, unique, detail))
        self._still()
        return taken

    async def _handle(self, event: Event, unique: str | None = None, detail: dict[str, Any] | None = None) -> bool:
        async with self._lock:
            taken = await self._step(Line(event, unique, detail or {}))
            await self._drain()
            return taken

    async def _drain(self) -> None:
        while self._pending:
            event = self._pending.popleft()
            await self._step(Line(event, detail=asdict(event.failure) if isinstance(event, Failed) else {}))

    async def _step(self, *lines: Line) -> bool:
        """Journal, handle, publish, perform. Where nothing can be stored, the run waits; whatever else goes wrong ends it, loudly, and no other."""
        run = self.book.run
        if self._aside:
            return False
        if run.status != RUNNING:
            return False
        step = (run.phase, run.number)
        try:
            applied = await asyncio.to_thread(self.book.apply_all, lines, self._world.clock.now())
        except (OSError, SQLAlchemyError):
            log.exception("a run waits until the server can store it", run=self.id)
            self._set_aside()
            return False
        except Exception as error:
            log.exception("a run cannot go on", run=self.id)
            await self._give_up(error)
            return False
        taken = [each for each in applied if each is not None]
        if taken:
            effects, entries = (list(chain.from_iterable(parts)) for parts in zip(*taken, strict=True))
            fresh = (run.phase, run.number) != step or any(isinstance(line.event, Roster) for line in lines)
            self._carry_out(effects, entries, fresh=fresh)
        return bool(taken)

    async def _give_up(self, error: Exception) -> None:
        """End the run and say why; where not even that can be stored, it is taken up again when the server is restarted."""
        reason = str(error) if isinstance(error, FedscaleError) else f"the server met {type(error).__name__}; see its log"
        self._pending.clear()
        try:
            applied = await asyncio.to_thread(self.book.apply, Stop(f"server: {reason}"), self._world.clock.now())
        except (FedscaleError, OSError, SQLAlchemyError):
            log.exception("a run is left as it is until the server is restarted", run=self.id)
            applied = None
        if applied is not None:
            self._carry_out(*applied, fresh=True)
        else:
            self._set_aside()

    def _still(self) -> None:
        """Refuse to say what became of an event that this driver can store no more.

        Raises:
            Unreachable: the sender comes back to the next driver.
        """
        if self._aside:
            raise Unreachable("the server cannot store the run at the moment", where=f"run {self.id}", hint="try again; see the server's log")

    def _set_aside(self) -> None:
        """Leave the run to a driver that begins with what is stored; what is in memory may be ahead of it."""
        self._aside = True
        self._pending.clear()
        self.halt()
        self._world.finished(self.id)

    def _carry_out(self, effects: list[Effect], entries: list[Entry], *, fresh: bool) -> None:
        """Tell the watchers what was journaled, then do what the run asks for; timers belong to one step of the run and end with it."""
        for entry in entries:
            self._publish(entry)
        if fresh:
            self._timers.clear()
        self._perform(effects)

    def _publish(self, entry: Entry) -> None:
        """Show an entry of the journal to the watchers, and count it."""
        self._world.tally.take(entry)
        curves = self._world.curves
        if curves and entry.kind == "closed":
            curves.take(self.id, self.book.row.name, self.book.rounds)
        elif curves and entry.kind == "finished":
            curves.end(self.book.record(self._world.clock.now()))
        self.feed.publish(run_event(entry.seq, entry.at.timestamp(), entry.kind, (entry.phase, entry.number), entry.detail, entry.node))

    def passing(self, kind: str, key: Key, node: str, detail: dict[str, Any]) -> None:
        """Show watchers a sign of life that is not worth a line in the journal."""
        if self._at_work(key, node):
            self.feed.publish(run_event(0, self._world.clock.now().timestamp(), kind, (str(key[1]), key[2]), detail, node))

    def doing(self, node: str, stage: str, *, again: bool = False) -> None:
        """Note in a node's lane what it does in the open round, as far as anybody sees it here, and show it; ``again`` for a further attempt."""
        now, run = self._world.clock.now().timestamp(), self.book.run
        if run.round is not None and self.book.lanes.mark(node, stage, now, again=again):
            self.feed.publish(run_event(0, now, "stage", (str(run.phase), run.number), {"stage": stage, "again": again}, node))

    def begun(self, key: Key, node: str, stage: str) -> None:
        """A node says what it begins with, which nobody sees from here: its work, or to mask what came of it."""
        if stage in (str(key[1]), MASK) and self._at_work(key, node):
            self.doing(node, stage)

    def drawn(self) -> pb.RunEvent | None:
        """The lanes of the open round so far, for somebody who begins to watch; ``None`` while there is none."""
        lanes, run = self.book.lanes, self.book.run
        return run_event(0, lanes.opened, "lanes", (str(run.phase), run.number), {"lanes": lanes.drawn()}) if run.round is not None else None

    def _perform(self, effects: list[Effect]) -> None:
        """Carry out what need not survive a crash."""
        for effect in effects:
            if isinstance(effect, Gather):
                self._needed = effect.at_least
                self._gather()
            elif isinstance(effect, Assign):
                self._assign(effect.tasks)
            elif isinstance(effect, Tell):
                if effect.step in LATE:
                    self.doing(effect.node, UNMASK)
                for part in told_to_proto((self.id, Phase(effect.phase), effect.number), effect.step, effect.data):
                    self._send(effect.node, node_pb2.ServerMessage(told=part))
            elif isinstance(effect, Release):
                key = key_to_proto((self.id, Phase(effect.phase), effect.number))
                self._world.sessions.send(effect.node, node_pb2.ServerMessage(release=node_pb2.Release(key=key)))
            elif isinstance(effect, Arm):
                self._timers.arm(effect.timer, effect.seconds, partial(self._fire, effect.timer))
            elif isinstance(effect, Finish):
                self.halt(End.OVER)
                self._world.finished(self.id)

    def _gather(self) -> None:
        """Send the run its roster when enough nodes are there, and have said what they think of it."""
        run, plan = self.book.run, self.book.plan
        nodes = self._world.sessions.eligible(self.book.row.project, plan.job.data)
        keys = self._world.sessions.identities(nodes) if plan.secagg.enabled else {}
        nodes = tuple(keys) if plan.secagg.enabled else nodes
        able = set(nodes) - run.resting()
        if self._needed and len(able) < self._needed:
            where = (str(run.phase), run.number)
            self.feed.publish(run_event(0, self._world.clock.now().timestamp(), "gathering", where, {"needed": self._needed, "there": list(nodes)}))
        elif self._needed and self._stances.ask(able):
            self._timers.arm("stances", min(MOST_SECONDS, plan.clients.deadline / 2), self._impatient)
        elif self._needed and not self._stances.waiting:
            needed, self._needed = self._needed, 0
            self._pending.extend(self._stances.settled(nodes, able, keys, needed))

    async def proposed(self, node: str, number: int, refused: Mapping[Phase, Failure]) -> None:
        """A node has said what it would refuse of a round."""
        self._stances.take(node, number, refused)
        if not self._stances.waiting:
            await self.errands.begin(self._regather())

    def _impatient(self) -> None:
        """Go on with what nodes have said so far."""
        self._stances.hurry()
        self.errands.begin(self._regather())

    async def _regather(self) -> None:
        async with self._lock:
            self._gather()
            await self._drain()

    def _assign(self, tasks: Tasks) -> None:
        """Send tasks; a node that is away gets its own when it connects, and is lost if it stays away."""
        row, deadline, signed = self.book.row, self.book.plan.clients.deadline, self._signed()
        for task in tasks:
            message = assignment_to_proto(self.id, task, row.plan, row.bundle, deadline, signed)
            self._send(task.node, node_pb2.ServerMessage(assignment=message))

    def _send(self, node: str, message: node_pb2.ServerMessage) -> None:
        """Send to a node that owes something; one that stays away is lost."""
        if not self._world.sessions.send(node, message):
            self._timers.arm(f"absent/{node}", SILENCE_SECONDS, partial(self._absent, node))

    def _signed(self) -> tuple[bytes, bytes]:
        """The signed roster of the open round and the statement of whoever signed it; nothing for a round without."""
        current, rosters = self.book.run.round, self._world.rosters
        if current is None or current.masked is None or rosters is None:
            return b"", b""
        if self._signature[0] is not current:
            self._signature = current, rosters.sign(current.masked.roster)
        return self._signature[1], rosters.statement

    def _fire(self, timer: str) -> None:
        self.errands.begin(self._handle(Fired(timer)))

    def _absent(self, node: str) -> None:
        self.errands.begin(self._lose(node))

    def connected(self, node: str) -> None:
        """A node is there: it may complete the roster, come back to its round, or get its task again."""
        self.errands.begin(self._welcome(node))

    async def _welcome(self, node: str) -> None:
        async with self._lock:
            run = self.book.run
            if run.round is not None and run.round.owes(node):
                if run.round.gone(node):
                    self._pending.append(Returned(node))
                else:
                    self._perform(run.round.requests_of(node))
            elif run.asked == node:
                self._perform([e for e in run.begin() if isinstance(e, Assign)])
            elif self._needed:
                self._gather()
            await self._drain()

    def disconnected(self, node: str) -> None:
        """A node's stream broke. In a round it is lost at once and may come back; only for the first model others would be asked at once."""
        if self.book.run.asked == node:
            self._timers.arm(f"absent/{node}", SILENCE_SECONDS, partial(self._absent, node))
        else:
            self.errands.begin(self._lose(node))

    async def _lose(self, node: str) -> None:
        """A node is away; that matters if it has not come back since and owes something."""
        async with self._lock:
            run = self.book.run
            owing = run.asked == node or (run.round is not None and run.round.owes(node) and not run.round.gone(node))
            if owing and self._world.sessions.get(node) is None:
                await self._step(Line(Lost(node)))
            if self._world.sessions.get(node) is None and self._needed:
                self._stances.due.discard(node)
                self._gather()
            await self._drain()

    def owes(self, key: Key, node: str) -> bool:
        """Whether this very answer is still wanted from this node."""
        current = self.book.run.round
        return self._at_work(key, node) and (current is None or current.wants(node))

    def _at_work(self, key: Key, node: str) -> bool:
        """Whether a node has anything to do yet for this very task."""
        run = self.book.run
        if run.status != RUNNING or key[1:] != (run.phase, run.number):
            return False
        return run.asked == node if run.round is None else run.round.owes(node)

    def holds(self, digest: str) -> bool:
        """Whether a blob is this run's bundle or one of its models."""
        return digest == self.book.row.bundle or self.book.spool.blobs.has(digest)

    def involves(self, node: str) -> bool:
        """Whether a node takes part in what is under way."""
        current = self.book.run.round
        return self.book.run.asked == node or (current is not None and node in current.places)

    def expected(self, key: Key, schema: str) -> int:
        """Exact size in bytes of the answer to a task.

        Raises:
            ProtocolError: the schema of a first model is malformed or empty.
        """
        current = self.book.run.round
        if key[1] is not Phase.INIT:
            return current.terms.layout.nbytes if current else 0
        size = WORD.itemsize * Schema.from_json(schema).size
        if not size:
            raise ProtocolError("a first model without a single coordinate")
        return size

    def require_size(self, key: Key, size: int, schema: str) -> None:
        """Refuse an answer of another size than the task's.

        Raises:
            ProtocolError: it is one, or as ``expected``.
        """
        expected = self.expected(key, schema)
        if size != expected:
            raise ProtocolError(f"an answer of {size} bytes", why=f"the round asks for {expected}")

    async def failed(self, key: Key, node: str, failure: Failure) -> None:
        """A node reported that it cannot answer."""
        if self._at_work(key, node):
            await self.handle(Failed(node, failure), detail=asdict(failure))

    async def spoken(self, key: Key, node: str, step: str, data: bytes) -> None:
        """A node answered a message of secure aggregation; what is not due is not kept.

        Raises:
            Unreachable: it cannot be stored at the moment.
        """
        current = self.book.run.round
        if self._at_work(key, node) and current is not None and current.hears(node, step):
            unique = "/".join(("spoke", *map(str, key[1:]), step, node))
            self._heard.append(Line(Spoke(node, step, b64encode(data).decode()), unique, {"step": step}))
            await self.errands.begin(self._take_heard())
            self._still()

    async def _take_heard(self) -> None:
        """Take all messages that have come while the last ones were stored: one transaction for many nodes."""
        async with self._lock:
            lines, self._heard = self._heard, []
            if lines:
                await self._step(*lines)
                await self._drain()

    def extremes(self, key: Key) -> Extremes | None:
        """What is to be seen of an answer while it arrives, so that it need not be read again to be checked."""
        current = self.book.run.round
        plain = current is not None and current.masked is None and key[1:] == (current.terms.phase, current.terms.number)
        return Extremes(current.terms.layout.size) if current is not None and plain else None

    async def answered(self, key: Key, node: str, answer: Arrived) -> Receipt:
        """Check, keep and count an answer; the end of the node's ledger is noted."""
        return await self.errands.begin(self._answered(key, node, answer))

    async def _answered(self, key: Key, node: str, answer: Arrived) -> Receipt:
        # Nobody waits while an answer is read; whether it still counts is seen when the run stands still.
        event = await self._heard_out(key, node, answer)
        async with self._lock:
            self._still()
            if event is None or not self.owes(key, node):
                return self.receipt(key, node, answer.digest)
            noted = {"ledger": answer.head} if answer.head else {}
            detail = asdict(event.failure) if isinstance(event, Failed) else {"bytes": self.expected(key, answer.schema)} | noted
            if not isinstance(event, Failed):
                await asyncio.to_thread(self._keep, event, key, answer.path)
            taken = await self._step(Line(event, None if isinstance(event, Failed) else "/".join((*map(str, key[1:]), node)), detail))
            await self._drain()
            self._still()
        if isinstance(event, Failed):
            return Receipt(verdict=Receipt.REJECTED, reason=str(event.failure))
        if not taken:
            return Receipt(verdict=Receipt.CLOSED, reason="the run is over")
        return Receipt(verdict=Receipt.ACCEPTED, keep=not self.book.spool.lasting)

    async def _heard_out(self, key: Key, node: str, answer: Arrived) -> Answered | Initialized | Failed | None:
        """What an answer means to the run: that it is sound, or why it is not; ``None`` when it is not wanted any more."""
        try:
            return await asyncio.to_thread(self._checked, key, node, answer)
        except (UpdateRejected, ProtocolError) as error:
            return Failed(node, Failure(Cause.REJECTED, error.what, error.where, error.hint))
        except NotFound:
            # The key under which it lies goes with its round.
            if self.owes(key, node):
                raise
            return None

    def _checked(self, key: Key, node: str, answer: Arrived) -> Answered | Initialized | None:
        """The event of a sound answer; ``None`` when it is not wanted any more. Blocks, and the run may go on meanwhile.

        Raises:
            UpdateRejected: no honest node could have sent it.
        """
        spool, current = self.book.spool, self.book.run.round
        if not self.owes(key, node):
            return None
        if key[1] is Phase.INIT:
            model = mapped(answer.path)
            if not finite(model):
                raise UpdateRejected("the first model has values that are not finite")
            return Initialized(node, answer.schema, answer.digest, model)
        words = spool.words(answer.path, name=spool.answer(str(key[1]), key[2], node, answer.digest).name)
        if current is None or key[1:] != (current.terms.phase, current.terms.number):
            return None
        if current.masked is None:
            current.terms.layout.check(words, answer.seen)
        return Answered(node, answer.digest, words)

    def _keep(self, event: Answered | Initialized, key: Key, staged: Path) -> None:
        """Make a sound answer durable under its own name."""
        if isinstance(event, Initialized):
            self.book.spool.blobs.adopt(staged, event.digest)
        else:
            self.book.spool.keep(staged, self.book.spool.answer(str(key[1]), key[2], event.node, event.digest))

    def receipt(self, key: Key, node: str, digest: str) -> Receipt:
        """What to say to an answer that is not wanted: sent before, or too late."""
        current = self.book.run.round
        again = current is not None and key[1:] == (current.terms.phase, current.terms.number) and current.places.get(node) is Place.ANSWERED
        if again and self.book.spool.answer(str(key[1]), key[2], node, digest).exists():
            return Receipt(verdict=Receipt.DUPLICATE)
        if again:
            return Receipt(verdict=Receipt.REJECTED, reason="another answer of this node was accepted for this round")
        return Receipt(verdict=Receipt.CLOSED, reason="the round is over or does not ask this node")
