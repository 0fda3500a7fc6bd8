"""The node: takes tasks from the server, has them done by its workers, and sees to it that every answer arrives.

What a task came to is kept until the server has said what became of it, whatever happens to the connection meanwhile; the
same task asked for again is answered from what is kept.
"""

from __future__ import annotations

import asyncio
import signal
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeAlias

from fedscale.clock import Clock, SystemClock
from fedscale.errors import Cause, ConfigError, Failure, FedscaleError, PolicyRefusal
from fedscale.lanes import MASK
from fedscale.learner import Phase
from fedscale.wire.convert import Key, key_text
from fedscale_client import declarations, failures, renewal, states
from fedscale_client.answers import Answer, Answers
from fedscale_client.cache import Cache
from fedscale_client.connection import Assignment, Connection, Proposal
from fedscale_client.credentials import Credentials
from fedscale_client.gate import Gate
from fedscale_client.home import NodeHome
from fedscale_client.ledger.head import RESTORE
from fedscale_client.masking import Masking, Seat
from fedscale_client.performer import Performer
from fedscale_client.stance import Stances, wanted
from fedscale_client.transfer import Transfer
from fedscale_client.workers import Workers

Report: TypeAlias = Callable[[Mapping[str, Any]], None]

MOST_JOBS = 32
MOST_FAILURES = 64
PROGRESS_SECONDS = 1.0
DRAIN_SECONDS = 5.0


async def run(home: NodeHome, *, on_event: Report, clock: Clock | None = None) -> None:
    """Take part until SIGTERM or SIGINT.

    Args:
        home: a home that has joined.
        on_event: told what happens, each time a mapping with ``event`` and what belongs to it.
        clock: for the life of certificates.

    Raises:
        ConfigError: the home is not complete.
        Conflict: another process uses it.
        AccessDenied: the server does not accept this node any more.
    """
    with home.locked():
        node, loop = Node(home, on_event, clock or SystemClock()), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, node.stop)
        try:
            await node.run()
        except ExceptionGroup as group:
            # Whatever came first is the reason; the rest was cancelled because of it.
            raise group.exceptions[0] from None
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


class Node:
    """One node at work; ``run`` above gives it a process."""

    def __init__(self, home: NodeHome, on_event: Report, clock: Clock) -> None:
        settings = home.settings()
        self._home, self._name, self._on_event, self._clock = home, settings.name, on_event, clock
        cache, self._answers = Cache(home.cache, settings.cache_bytes), Answers(home.cache / "answers", settings.cache_bytes)
        self._transfer, self._workers = Transfer(settings, cache), Workers(home.log_file, settings.workers)
        self._gate = Gate(home, clock)
        self._performer = Performer(home, cache, self._answers, self._transfer, self._workers, self._gate)
        self._connection = Connection(home, self, clock)
        self._masking = Masking(home, self._connection.speak, self._left)
        self._stances = Stances(home, self._gate, self._connection.stand, self._tell)
        self._jobs: dict[Key, asyncio.Task[None]] = {}
        self._delivering: set[Key] = set()
        self._failures: OrderedDict[Key, Failure] = OrderedDict()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._offered: tuple[float, tuple[str, ...]] = (-1.0, tuple(sorted(declarations.listed(home))))
        self._noted, self._stopping = "", asyncio.Event()
        self._group = asyncio.TaskGroup()

    async def run(self) -> None:
        """Take part until ``stop``.

        Raises:
            ExceptionGroup: around what ended it.
        """
        await asyncio.to_thread(states.trim, self._home.cache / states.FOLDER)
        try:
            async with self._group:
                lasting = [self._group.create_task(self._connection.run()), self._group.create_task(self._renew())]
                await self._stopping.wait()
                await self._drain()
                for task in (*lasting, *self._jobs.values()):
                    task.cancel()
        finally:
            await self._workers.close()
            await self._transfer.close()
            self._tell("stopped")

    def stop(self) -> None:
        """Take no more tasks, deliver what is ready, and end."""
        self._stopping.set()

    async def _drain(self) -> None:
        """Give answers that are done a last chance to arrive: work may have gone into them for hours."""
        ready = [self._jobs[key] for key in self._delivering]
        if ready:
            self._tell("delivering", answers=len(ready), seconds=DRAIN_SECONDS)
            await asyncio.wait(ready, timeout=DRAIN_SECONDS)

    async def _renew(self) -> None:
        """Keep the certificate from running out."""
        while True:
            credentials = Credentials.of(self._home)
            if renewal.is_due(credentials, self._clock.now()):
                try:
                    credentials = await renewal.renew(self._home, self._clock.now(), self._connection.settings)
                    self._tell("renewed", until=credentials.expires().isoformat())
                except FedscaleError as error:
                    # The control stream hears the same and knows whether that is the end.
                    self._tell("not renewed", error=str(error))
            await asyncio.sleep(renewal.pause(credentials, self._clock.now()))

    # ------------------------------------------------------------------------------------------ what the server says

    def offer(self) -> tuple[str, ...]:
        """The datasets of this site, read again when their file has changed."""
        file = self._home.datasets_file
        changed = file.stat().st_mtime if file.exists() else 0.0
        if changed != self._offered[0]:
            try:
                self._offered = (changed, tuple(sorted(declarations.listed(self._home))))
            except FedscaleError as error:
                self._offered = (changed, self._offered[1])
                self._tell("datasets not read", error=str(error))
        return self._offered[1]

    def identity(self) -> bytes:
        """What proves this node's identity key."""
        return self._masking.identity()

    def proposed(self, proposal: Proposal) -> None:
        """Say whether this site would do what is about to be asked."""
        self._group.create_task(self._stances.answer(proposal))

    def told(self, key: Key, step: str, data: bytes) -> None:
        """Answer a message of secure aggregation."""
        self._group.create_task(self._masking.told(key, step, data))

    async def waiting(self) -> tuple[str, ...]:
        """The runs that keep room in the ledger."""
        return await self._gate.waiting()

    async def opened(self, credentials: Credentials) -> None:
        """The server is there: what waits to be delivered goes at once."""
        self._tell("connected", datasets=list(self._offered[1]), **({"noted": self._noted} if self._noted else {}))
        await self._transfer.use(credentials, self._connection.settings)

    async def anchored(self, head: str) -> None:
        """The server has noted the end of this site's ledger; a ledger without it allows nothing any more."""
        self._noted = head
        try:
            if problem := await self._gate.anchored(head):
                self._tell("ledger rolled back", problem=problem, hint=RESTORE)
        except ConfigError as error:
            self._tell("ledger not read", error=str(error))

    def closed(self, error: FedscaleError, seconds: float) -> None:
        """The server is gone; work goes on."""
        self._noted = ""
        self._tell("disconnected", error=str(error), retry_seconds=round(seconds, 2))

    def assigned(self, assignment: Assignment) -> None:
        """Take a task, unless it is at work or was answered already."""
        key = assignment.key
        if self._stopping.is_set():
            return
        if key in self._failures:
            self._connection.fail(key, self._failures[key])
        elif key in self._jobs:
            self._connection.accept(key)
        elif len(self._jobs) >= MOST_JOBS:
            self._connection.fail(key, Failure(Cause.WORKER, f"the node has {MOST_JOBS} tasks already", hint="start fewer runs at a time"))
        else:
            self._connection.accept(key)
            self._tell("task", key=key_text(key), run=key[0], phase=str(key[1]), number=key[2], **wanted(assignment))
            seat = self._masking.asked(assignment)
            if seat is not None:
                self._group.create_task(self._masking.open(assignment, seat))
            self._jobs[key] = self._group.create_task(self._job(assignment, seat, asyncio.get_running_loop().time() + assignment.seconds))

    def released(self, key: Key) -> None:
        """Drop a task nobody waits for any more; by the message of number 0, what is kept for its run, for that is over."""
        if key[1] is Phase.MESSAGE and not key[2]:
            self._group.create_task(self._forget(key[0]))
        self._failures.pop(key, None)
        self._masking.forget(key)
        if job := self._jobs.get(key):
            self._tell("released", key=key_text(key))
            job.cancel()

    async def _forget(self, run: str) -> None:
        """Drop what an app remembers of a run, and the room it kept; whoever is at work for it yet would write it down again."""
        if jobs := [job for key, job in self._jobs.items() if key[0] == run]:
            await asyncio.wait(jobs)
        await asyncio.to_thread(states.forget, self._home.cache, run)
        await self._gate.over(run)

    # ------------------------------------------------------------------------------------------------------ one task

    def _left(self, key: Key, failure: Failure) -> None:
        """Tell that this node has left a round of secure aggregation; work for it is in vain."""
        self._fail(key, failure)
        if job := self._jobs.get(key):
            job.cancel()

    async def _job(self, assignment: Assignment, seat: Seat | None, deadline: float) -> None:
        """One task from its assignment until the server has said what became of it."""
        key = assignment.key
        answer: Answer | None = None
        settled = False
        try:
            async with self._turns[key[0]]:
                # Where differential privacy is promised, not even how far the work is may leave: the number comes from code that sees the data.
                progress = _silent if assignment.plan.privacy else self._progress(key)
                outcome = await self._performer.perform(assignment, deadline, progress, partial(self._connection.progress, key, 0.0, str(key[1])))
                if seat is not None and isinstance(outcome, Answer):
                    outcome = await self._masking.mask(seat, outcome, deadline, partial(self._connection.progress, key, 0.0, MASK))
            if isinstance(outcome, Failure):
                self._fail(key, outcome)
            else:
                answer = outcome
                await self._deliver(key, answer, masked=seat is not None)
            settled = True
        finally:
            # What a node could not deliver before it was stopped, its next life will.
            if answer and (settled or not self._stopping.is_set()):
                self._answers.settle(answer)
            del self._jobs[key]
            if not any(other[0] == key[0] for other in self._jobs):
                self._turns.pop(key[0], None)
            await self._gate.close(key)

    def _progress(self, key: Key) -> Callable[[float], None]:
        """Passes a task's progress on, once a second at most."""
        loop, last = asyncio.get_running_loop(), [float("-inf")]

        def pass_on(fraction: float) -> None:
            if loop.time() - last[0] >= PROGRESS_SECONDS:
                last[0] = loop.time()
                self._connection.progress(key, fraction)
                self._tell("progress", key=key_text(key), fraction=fraction)

        return pass_on

    def _fail(self, key: Key, failure: Failure) -> None:
        """Report a failure and keep it, in case the report is lost."""
        self._failures[key] = failure
        while len(self._failures) > MOST_FAILURES:
            self._failures.popitem(last=False)
        self._connection.fail(key, failure)
        self._tell("failed", key=key_text(key), failure=asdict(failure))

    async def _deliver(self, key: Key, answer: Answer, *, masked: bool) -> None:
        """Hand an answer over and hear what became of it."""
        self._delivering.add(key)
        try:
            head = await self._gate.release(key, answer, masked=masked)
            verdict, reason, keep = await self._gate.passing(self._transfer.submit(key, answer, str(head)))
            if keep:
                self._answers.keep(answer)
            await self._gate.commit(key, verdict, reason)
            self._tell("answered", key=key_text(key), verdict=verdict, reason=reason, bytes=answer.size)
        except PolicyRefusal as error:
            self._fail(key, failures.of_local(error))
        except FedscaleError as error:
            self._fail(key, replace(failures.of_local(error), cause=Cause.REJECTED))
        except OSError as error:
            self._fail(key, failures.of_local(error))
        finally:
            self._delivering.discard(key)

    def _tell(self, event: str, **facts: Any) -> None:
        self._on_event({"event": event, "node": self._name, **facts})


def _silent(_: float) -> None:
    """Pass no progress on."""
