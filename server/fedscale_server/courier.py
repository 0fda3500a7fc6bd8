"""Drives a led run: carries its leader's letters to the nodes, one at a time to each, and their replies back.

Everything is in the journal before anybody hears of it. So whoever is killed, the leader, a node or the server, is told what it
missed when it is back, and every letter is answered once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from fedscale.errors import AccessDenied, Failure, ProtocolError, Unreachable
from fedscale.events import Event, Pause, Resume, Stop
from fedscale.learner import Phase
from fedscale.letters import RUNNING, Letter, Place, Reply
from fedscale.proto.v1 import bulk_pb2
from fedscale.ring import WORD
from fedscale.wire.convert import Key
from fedscale.wire.limits import LETTER
from fedscale_server.delivery import Delivery
from fedscale_server.feed import End, Feed, run_event
from fedscale_server.uploads import Arrived
from fedscale_server.work import Errands, World

if TYPE_CHECKING:
    from fedscale_server.letterbook import Letterbook, Line, Metrics

log = structlog.get_logger()
Receipt = bulk_pb2.Receipt
T = TypeVar("T")
GATHERING, AGAIN_SECONDS = "gather", 1.0


class Courier:
    """One led run and its world; to nodes and watchers what ``Driver`` is.

    Args:
        book: the run and its durable half.
        world: the server around it.
    """

    def __init__(self, book: Letterbook, world: World) -> None:
        self.book, self._world, self.feed, self.errands = book, world, Feed(), Errands()
        self._delivery = Delivery(book, world.sessions, world.clock, self._give_up)
        self._lock = asyncio.Lock()

    @property
    def id(self) -> str:
        """The run's id."""
        return self.book.row.id

    async def start(self) -> None:
        """Hand out what is open, at the beginning, after a restart or after a pause."""
        self._delivery.begin()
        if not self.book.run.members:
            self._delivery.timers.arm(GATHERING, self.book.plan.clients.deadline, partial(self._later, self._alone))
            await self.errands.begin(self._insisted(self._gather))

    def halt(self, end: End = End.DOWN) -> None:
        """No more timers, and watchers are let go; a run that is not over goes on when the server is back."""
        self._delivery.timers.stop()
        self.feed.close(end)

    async def handle(self, event: Event) -> bool:
        """Stop, pause or resume.

        Raises:
            Unreachable: it cannot be stored at the moment.
        """
        if isinstance(event, Stop):
            return await self.errands.begin(self._finish("stopped", event.reason))
        if isinstance(event, Pause | Resume):
            await self.errands.begin(self._pause(paused=isinstance(event, Pause)))
        return True

    async def lead(self, who: str, note: Callable[[], object]) -> None:
        """Let somebody lead the run; whoever was the first does to its end. ``note`` is told before that, and prevents it by raising.

        Raises:
            AccessDenied: somebody else leads it.
            Unreachable: it cannot be stored at the moment.
        """
        if not self.book.leader:
            await self.errands.begin(self._led(who, note))
        if self.book.leader != who:
            raise AccessDenied("somebody else leads this run", where=f"run {self.id}", hint="its replies are told to nobody else; you can stop it")

    async def post(self, letters: Sequence[Letter]) -> list[str]:
        """Take letters of the leader's; returns the contents that are to be stored first, and nothing was posted then.

        Raises:
            Conflict: one is not what was posted in its place before, or goes to nobody.
            Unreachable: they cannot be stored at the moment.
        """
        return await self.errands.begin(self._post(letters))

    async def conclude(self, reason: str, metrics: Metrics, model: str = "") -> None:
        """The leader has come to its end, well or not, and keeps a model of this SHA-256 if any.

        Raises:
            Unreachable: it cannot be stored at the moment.
        """
        await self.errands.begin(self._finish("failed" if reason else "completed", reason, metrics, model))

    def connected(self, node: str) -> None:
        """A node is there: it may be the last one that was waited for, or gets its letter again."""
        if self.book.run.members:
            self._delivery.send(node)
        else:
            self._later(self._gather)

    def disconnected(self, node: str) -> None:
        """A node's stream broke; it may come back."""
        if self.book.run.due(node):
            self._delivery.miss(node)

    def involves(self, node: str) -> bool:
        """Whether a node has a letter to answer."""
        return self.book.run.due(node) is not None

    def holds(self, digest: str) -> bool:
        """Whether a blob is this run's bundle or the content of a letter."""
        return digest == self.book.row.bundle or self.book.spool.blobs.has(digest)

    def owes(self, key: Key, node: str) -> bool:
        """Whether this very answer is still wanted from this node."""
        return key[1] is Phase.MESSAGE and self.book.run.owes((node, key[2]))

    def require_size(self, key: Key, size: int, schema: str) -> None:  # noqa: ARG002 - as Driver's
        """Refuse an answer of a size that none has.

        Raises:
            ProtocolError: it is too large, or not in whole words.
        """
        if not 0 < size <= LETTER or size % WORD.itemsize:
            raise ProtocolError(f"a reply of {size} bytes", why=f"one has whole words and at most {LETTER} bytes")

    def passing(self, kind: str, key: Key, node: str, detail: dict[str, Any]) -> None:
        """Show watchers a sign of life that is not worth a line in the journal."""
        if self.owes(key, node):
            letter = self.book.run.letters[node, key[2]]
            self.feed.publish(run_event(0, self._world.clock.now().timestamp(), kind, (letter.phase, letter.round), detail, node))

    async def failed(self, key: Key, node: str, failure: Failure) -> None:
        """A node reported that it cannot answer."""
        if self.owes(key, node):
            await self.errands.begin(self._settle((node, key[2]), failure))

    async def answered(self, key: Key, node: str, answer: Arrived) -> Receipt:
        """Keep and count an answer."""
        return await self.errands.begin(self._answered(key, node, answer.path, answer.digest))

    def receipt(self, key: Key, node: str, digest: str) -> Receipt:
        """What to say to an answer that is not wanted: sent before, or too late."""
        if (known := self.book.run.replies.get((node, key[2]))) and known.digest == digest:
            return Receipt(verdict=Receipt.DUPLICATE)
        return Receipt(verdict=Receipt.CLOSED, reason="nobody waits for this reply")

    async def _led(self, who: str, note: Callable[[], object]) -> None:
        async with self._lock:
            if not self.book.leader:
                await asyncio.to_thread(note)
                await self._write(self.book.led(who))

    async def _pause(self, *, paused: bool) -> None:
        async with self._lock:
            await self._write(self.book.paused(paused=paused))
        if not paused:
            await self.start()

    async def _post(self, letters: Sequence[Letter]) -> list[str]:
        async with self._lock:
            fresh = self.book.run.fresh(letters)
            missing = [content for content in {letter.content for letter in fresh} if not self.book.spool.blobs.has(content)]
            if missing or not fresh:
                return missing
            await self._write(self.book.posted(fresh))
        for letter in fresh:
            self._delivery.limit(letter)
        for node in {letter.node for letter in fresh}:
            self._delivery.send(node)
        return []

    async def _answered(self, key: Key, node: str, staged: Path, digest: str) -> Receipt:
        async with self._lock:
            if not self.owes(key, node):
                return self.receipt(key, node, digest)
            place = node, key[2]
            size = await self.stored(partial(self.book.keep, place, staged, digest))
            await self._write(self.book.answered(place, digest, size))
            await self._spare(place)
        self._delivery.send(node)
        return Receipt(verdict=Receipt.ACCEPTED)

    def _give_up(self, place: Place, failure: Failure) -> None:
        """A letter's time is over, or its node was away for too long; in a pause neither counts."""
        if not self.book.run.paused:
            self._later(self._settle, place, failure)

    async def _settle(self, place: Place, failure: Failure) -> None:
        """A letter will not be answered."""
        async with self._lock:
            if place in self.book.run.replies or self.book.run.status != RUNNING:
                return
            await self._write(self.book.failed(place, failure))
            await self._spare(place)
        self._delivery.release(place)
        self._delivery.send(place[0])

    async def lose(self, reply: Reply, what: str) -> None:
        """The disk has lost a reply: from now on it is a failure for every leader, or the end of the run."""
        async with self._lock:
            if self.book.run.status == RUNNING and self.book.run.replies[reply.place].failure is None:
                await self._write(self.book.lost(reply, what))
        if self.book.run.status != RUNNING:
            await self._finish(self.book.run.status, self.book.run.reason)

    async def _gather(self) -> None:
        """Settle who takes part when enough nodes are there."""
        async with self._lock:
            clients = self.book.plan.clients
            nodes = self._world.sessions.eligible(self.book.row.project, self.book.plan.job.data)
            needed = max(clients.min_per_round, clients.wait_for or 0)
            if self.book.run.members or self.book.run.status != RUNNING:
                return
            if len(nodes) >= needed:
                await self._write(self.book.gathered(nodes))
                self._delivery.timers.clear()
            else:
                self.feed.publish(run_event(0, self._world.clock.now().timestamp(), "gathering", ("init", 0), {"needed": needed, "there": nodes}))

    async def _alone(self) -> None:
        if not self.book.run.members and not self.book.run.paused:
            await self._finish("failed", f"too few nodes were there within {self.book.plan.clients.deadline:g} s")

    async def _finish(self, status: str, reason: str, metrics: Metrics = (), model: str = "") -> bool:
        async with self._lock:
            if self.book.row.finished is not None:
                return False
            busy = [letters[0] for letters in self.book.run.open.values() if letters]
            if self.book.run.status == RUNNING:
                await self._write(self.book.finished(status, reason, metrics, model))
            await self.stored(partial(self.book.close, self._world.clock.now()))
        for letter in busy:
            self._delivery.release(letter.place)
        self.halt(End.OVER)
        self._world.finished(self.id)
        return True

    async def _write(self, lines: Sequence[Line]) -> None:
        """Journal lines, take them, and tell the watchers.

        Raises:
            Unreachable: they cannot be stored.
        """
        now = self._world.clock.now()
        numbers = await self.stored(partial(self.book.append, lines, now))
        stored = [(line, seq, now) for line, seq in zip(lines, numbers, strict=True) if seq is not None]
        for line, seq, at in stored if len(stored) == len(lines) else await self.stored(self.book.missed):
            entry = self.book.take(line, seq, at)
            self._world.tally.take(entry)
            self.feed.publish(run_event(seq, at.timestamp(), entry.kind, (entry.phase, entry.number), entry.detail, entry.node))

    async def _spare(self, place: Place) -> None:
        """Drop the content of a letter that was the last one to hold it; where the disk refuses, it goes with the run."""
        content = self.book.run.letters[place].content
        if not self.book.run.needs(content):
            with suppress(Unreachable):
                await self.stored(partial(self.book.spool.blobs.delete, content))

    async def stored(self, store: Callable[[], T]) -> T:
        """What is done on disk or in the database, in a thread.

        Raises:
            Unreachable: one of both refuses.
        """
        try:
            return await asyncio.to_thread(store)
        except (OSError, SQLAlchemyError) as error:
            log.exception("a led run cannot be stored", run=self.id)
            raise Unreachable("the server cannot store the run at the moment", where=f"run {self.id}", hint="try again; see its log") from error

    def _later(self, work: Callable[..., Coroutine[Any, Any, Any]], *given: Any) -> None:
        self.errands.begin(self._insisted(work, *given))

    async def _insisted(self, work: Callable[..., Coroutine[Any, Any, Any]], *given: Any) -> None:
        """Do what nobody waits for, and again a little later where it cannot be stored."""
        try:
            await work(*given)
        except Unreachable:
            self._delivery.timers.arm(f"again/{work.__name__}/{given}", AGAIN_SECONDS, partial(self._later, work, *given))
