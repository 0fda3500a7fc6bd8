"""The node's side of its workers: starts them, keeps them warm, and knows how each of them can end.

One worker process serves one run with one bundle and one dataset, task after task. There are never more than the site
allows; the one that was idle longest makes room. What a loader returns may be there once only, as a place to listen at is:
runs with such a dataset take turns, and the worker of one ends before that of another begins.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio import subprocess
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from fedscale import files
from fedscale.errors import Cause, Failure, ProtocolError
from fedscale.events import failure_of
from fedscale_client import failures, pipe
from fedscale_client.home import open_private
from fedscale_client.pipe import Message

GRACE_SECONDS = 2.0
REAP_SECONDS = 5.0
POLL_SECONDS = 0.1
MOST_LOG = 16 << 20
REPLIES = 64
COMMAND = (sys.executable, "-P", "-m", "fedscale_client.worker")


@dataclass(frozen=True, slots=True)
class Done:
    """A task that was done: digest and size of the answer in its file; the schema of a first model."""

    digest: str
    size: int
    schema: str


class Worker:
    """One worker process; make one with ``Worker.start``."""

    def __init__(self, process: subprocess.Process, dataset: str) -> None:
        self._process = process
        self.dataset, self.exclusive = dataset, False
        self._replies: asyncio.Queue[Message | None] = asyncio.Queue(REPLIES)
        self._listening = asyncio.create_task(self._listen())
        self._reaping = asyncio.create_task(self._reap())

    @classmethod
    async def start(cls, seat: Message, log: Path) -> Worker:
        """Start a process and tell it what all its tasks have in common.

        Raises:
            OSError: the system has no process, memory or descriptor left, or the log cannot be written.
        """
        _rotate(log)
        with open_private(log, os.O_WRONLY | os.O_APPEND) as errors:
            process = await subprocess.create_subprocess_exec(
                *COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=seat["bundle"],
                # One thread gives the same bits on every machine and in the simulator; a site that prefers speed sets a number of its own.
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
        worker = cls(process, seat["dataset"])
        with suppress(ConnectionError):  # it died at once: the first task will find out how
            await worker._send(seat)
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process can take a task."""
        return self._process.returncode is None and not self._listening.done()

    async def perform(self, request: Message, deadline: float, progress: Callable[[float], None]) -> Done | Failure:
        """Have one task done; if cancelled, the worker is asked to stop and killed only if it does not.

        Args:
            request: the task.
            deadline: when to give up and kill it, in the event loop's time.
            progress: called with fractions in [0, 1].
        """
        try:
            async with asyncio.timeout_at(deadline):
                with suppress(ConnectionError):
                    await self._send(request)
                reply = await self._reply(progress)
        except TimeoutError:
            await self.kill()
            return Failure(Cause.TIMEOUT, "the task was not done by its deadline", hint="raise clients.deadline or ask fewer epochs")
        except asyncio.CancelledError:
            await self._interrupt()
            raise
        return await self._autopsy() if reply is None else _outcome(reply)

    async def kill(self) -> None:
        """End the process and all it has started, now."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._gone(REAP_SECONDS)
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)

    async def close(self) -> None:
        """Let an idle process end by itself, or end it."""
        if self._process.stdin:
            self._process.stdin.close()
        await self._gone(GRACE_SECONDS)
        await self.kill()

    async def _gone(self, seconds: float) -> None:
        """Wait for the process to be gone, but not for ever."""
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reaping), seconds)

    async def _send(self, message: Message) -> None:
        if self._process.stdin:
            self._process.stdin.write(pipe.encode(message))
            await self._process.stdin.drain()

    async def _reply(self, progress: Callable[[float], None]) -> Message | None:
        """The outcome of a task, ``None`` when the worker is gone."""
        while (message := await self._replies.get()) is not None and "progress" in message:
            if isinstance(fraction := message["progress"], float):
                progress(fraction)
        self.exclusive = message is not None and message.get("exclusive") is True
        return message

    async def _interrupt(self) -> None:
        """Ask the worker to stop; one that is deaf is killed."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                stopped = await self._reply(lambda _: None)
        except TimeoutError:
            stopped = None
        if stopped is None:
            await self.kill()

    async def _autopsy(self) -> Failure:
        """How a worker ended that was not asked to."""
        await self._gone(GRACE_SECONDS)
        code = self._process.returncode
        await self.kill()
        return failures.of_exit(code)

    async def _listen(self) -> None:
        """Read replies as they come; when the stream ends, or makes no sense any more, so does the worker."""
        message: Message | None = {}
        while message is not None:
            try:
                message = await pipe.receive_async(self._process.stdout) if self._process.stdout else None
            except ProtocolError:
                message = None
            await self._replies.put(message)

    async def _reap(self) -> None:
        """Wait for the process, then end what it left behind, which might hold its pipe open."""
        while self._process.returncode is None:
            with suppress(TimeoutError):  # asyncio's own wait lasts until the pipe is closed as well
                await asyncio.wait_for(self._process.wait(), POLL_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await asyncio.wait({self._listening}, timeout=GRACE_SECONDS)
        if not self._listening.done():  # a process has fled into a session of its own and is not waited for
            self._listening.cancel()
            await self._replies.put(None)


class Workers:
    """All workers of a node.

    Args:
        log: the file that receives what workers print.
        most: most processes at a time, at work or warm.
    """

    def __init__(self, log: Path, most: int) -> None:
        files.private_folder(log.parent)
        self._log, self._most = log, most
        self._free = asyncio.Semaphore(most)
        # Of the datasets that are known to be exclusive.
        self._alone: dict[str, asyncio.Lock] = {}
        self._idle: OrderedDict[Hashable, Worker] = OrderedDict()
        self._busy: set[Worker] = set()

    async def perform(self, key: Hashable, seat: Message, request: Message, deadline: float, progress: Callable[[float], None]) -> Done | Failure:
        """Have a task done by the worker of ``key``, which is started if need be.

        Raises:
            OSError: no worker can be started.
        """
        try:
            turn = await self._turn(seat["dataset"], deadline)
        except TimeoutError:
            return Failure(Cause.TIMEOUT, "no worker was free by the task's deadline", hint="raise workers in node.toml")
        async with turn:
            worker = await self._take(key, seat)
            try:
                return await worker.perform(request, deadline, progress)
            finally:
                self._busy.discard(worker)
                if worker.exclusive:
                    self._alone.setdefault(worker.dataset, asyncio.Lock())
                if worker.alive:
                    self._idle[key] = worker

    async def close(self) -> None:
        """End all workers."""
        await asyncio.gather(*(worker.close() for worker in self._idle.values()), *(worker.kill() for worker in self._busy))
        self._idle.clear()

    async def _turn(self, dataset: str, deadline: float) -> AsyncExitStack:
        """Wait for a worker to be allowed, and for other runs where the dataset is exclusive.

        Raises:
            TimeoutError: not by the deadline, in the event loop's time.
        """
        async with asyncio.timeout_at(deadline), AsyncExitStack() as turn:
            if alone := self._alone.get(dataset):
                await turn.enter_async_context(alone)
            await turn.enter_async_context(self._free)
            return turn.pop_all()

    async def _take(self, key: Hashable, seat: Message) -> Worker:
        """The warm worker of a key, or a new one in place of the one that was idle longest."""
        for other, idle in list(self._idle.items()):
            if other != key and idle.exclusive and idle.dataset == seat["dataset"] and self._idle.pop(other, None):
                await idle.close()
        worker = self._idle.pop(key, None)
        if worker is None or not worker.alive:
            if worker:
                await worker.kill()
            while self._idle and len(self._idle) + len(self._busy) >= self._most:
                await self._idle.popitem(last=False)[1].close()
            worker = await Worker.start(seat, self._log)
        self._busy.add(worker)
        return worker


def _outcome(reply: Message) -> Done | Failure:
    """What a worker's last message says; it comes from a process that runs foreign code."""
    try:
        if "failed" in reply:
            return failure_of(reply["failed"])
        return Done(str(reply["digest"]), int(reply["size"]), str(reply["schema"]))
    except (KeyError, TypeError, ValueError):
        return Failure(Cause.WORKER, "the worker was interrupted, or its reply is malformed")


def _rotate(log: Path) -> None:
    """Keep the log of before once, and the disk from filling up."""
    if log.exists() and log.stat().st_size > MOST_LOG:
        log.replace(log.with_suffix(".old.log"))
