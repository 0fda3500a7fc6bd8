"""Worker processes that run trials, kept warm from one trial to the next."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STOP_SECONDS = 5.0


class Crew:
    """So many workers; each does one trial at a time.

    Args:
        size: how many.
        log: where their stderr goes.
    """

    def __init__(self, size: int, log: Path) -> None:
        self.size, self._log = size, log
        self._free: queue.SimpleQueue[subprocess.Popen[str] | None] = queue.SimpleQueue()
        self._all: list[subprocess.Popen[str]] = []
        self._threads = ThreadPoolExecutor(size)
        for _ in range(size):
            self._free.put(None)

    def __enter__(self) -> Self:
        """Workers start when they are needed."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End all, those that are at work by force; their trials go on another time."""
        for worker in self._all:
            worker.kill() if kind is not None and worker.poll() is None else None
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            if worker.stdin is not None:
                worker.stdin.close()
            worker.wait(STOP_SECONDS) if kind is None else worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()

    def submit(self, request: dict[str, Any]) -> Future[dict[str, Any]]:
        """Let the next worker that is free run a trial; see ``worker.trial`` for request and answer."""
        return self._threads.submit(self._ask, request)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """A worker's answer; one that dies over a trial has failed it, and another takes its place."""
        worker = self._free.get()
        if worker is None or worker.poll() is not None:
            worker = self._start()
        try:
            answer = _exchange(worker, json.dumps(request))
        finally:
            self._free.put(worker)
        return answer or {"metrics": {}, "reason": f"the worker died, exit code {worker.wait()}; see {self._log}"}

    def _start(self) -> subprocess.Popen[str]:
        """A new worker, with one thread because several share the machine."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "fedscale_simulations.sweep.worker"]
        with self._log.open("a", encoding="utf-8") as log:
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
            )
        self._all.append(worker)
        return worker


def _exchange(worker: subprocess.Popen[str], request: str) -> dict[str, Any] | None:
    """Send a line and read one; ``None`` from a worker that is dead."""
    if worker.stdin is None or worker.stdout is None:
        return None
    try:
        worker.stdin.write(request + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    line = worker.stdout.readline()
    answer: dict[str, Any] | None = json.loads(line) if line else None
    return answer
