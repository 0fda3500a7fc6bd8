"""Curves of all runs as they go on, where the coordinator's owner looks at curves: TensorBoard, MLflow or a table.

Each sink of each run has a thread and a short queue of its own. A round that finds the queue full is left out and counted;
what was left out is told when the run is over. So no sink, however slow, dead or wrong, makes a run wait or fail.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TypeAlias

import structlog

from fedscale.errors import ConfigError
from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks import Tracking, track

log = structlog.get_logger()
WAITING = 256
LAST_SECONDS = 2.0
Told: TypeAlias = RoundRecord | RunRecord | None


class _Line:
    """One sink of one run, in a thread of its own.

    Args:
        tracking: the sink.
        folder: the run's own.
        name: the job's.
        curves: counts what goes wrong.
    """

    def __init__(self, tracking: Tracking, folder: Path, name: str, curves: Curves) -> None:
        self._tracking, self._folder, self._name, self._curves = tracking, folder, name, curves
        (self._sink,) = tracking.sinks
        self._queue: Queue[Told] = Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=f"curves-{self._sink}", daemon=True)
        self._thread.start()

    def tell(self, row: RoundRecord) -> None:
        """A phase of a round has closed."""
        if not self._thread.is_alive():  # it has failed, and is counted as that
            return
        try:
            self._queue.put_nowait(row)
        except Full:
            self._curves.dropped[self._sink] += 1

    def end(self, record: RunRecord | None) -> None:
        """The run is over, or the coordinator goes down; makes room for that if need be."""
        while True:
            try:
                self._queue.put_nowait(record)
            except Full:
                try:
                    self._queue.get_nowait()
                except Empty:
                    continue
                self._curves.dropped[self._sink] += 1
            else:
                return

    def join(self, seconds: float) -> None:
        """Wait for what is left to be written, but no longer than so."""
        self._thread.join(seconds)

    def _work(self) -> None:
        """Everything that may take long or fail."""
        try:
            with track(self._tracking, self._folder, self._name, self._fail) as tracker:
                while isinstance(told := self._queue.get(), RoundRecord):
                    tracker.take(told)
                if told is not None:
                    tracker.close(told)
        except ConfigError as error:
            self._fail(str(error))

    def _fail(self, told: str) -> None:
        """This sink gets no more of this run."""
        self._curves.failed[self._sink] += 1
        log.warning("curves cannot be written", sink=self._sink, folder=str(self._folder), error=told)


class Curves:
    """The sinks of all runs; nothing here waits for one of them.

    Args:
        tracking: which sinks the coordinator's owner has chosen.
        folder: each run's files lie in a folder of its name in this one.

    Attributes:
        dropped: phases of rounds that a sink was too slow for, by sink.
        failed: runs that a sink gets no more of, by sink.
    """

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        self._tracking, self._folder = tracking, folder
        self.dropped: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._lines: dict[str, list[_Line]] = {}
        self._taken: Counter[str] = Counter()

    @property
    def sinks(self) -> tuple[str, ...]:
        """The names of the sinks."""
        return tuple(dict.fromkeys(self._tracking.sinks))

    def take(self, run: str, name: str, rounds: Sequence[RoundRecord]) -> None:
        """A run has gone on: its sinks are told those of its rounds that they were not told yet.

        Args:
            run: its id.
            name: the job's.
            rounds: all that are closed.
        """
        if run not in self._lines:
            each = [self._tracking.model_copy(update={"sinks": (sink,)}) for sink in self.sinks]
            self._lines[run] = [_Line(one, self._folder / run, name, self) for one in each]
        for row in rounds[self._taken[run] :]:
            for line in self._lines[run]:
                line.tell(row)
        self._taken[run] = len(rounds)

    def end(self, record: RunRecord) -> None:
        """A run is over."""
        self.take(record.run, record.name, record.rounds)
        for line in self._lines.pop(record.run):
            line.end(record)
        del self._taken[record.run]

    def close(self) -> None:
        """The coordinator goes down; what the sinks have not written within a moment is told them when it is back. Blocks."""
        lines = [line for of_run in self._lines.values() for line in of_run]
        for line in lines:
            line.end(None)
        until = time.monotonic() + LAST_SECONDS
        for line in lines:
            line.join(max(until - time.monotonic(), 0.0))
        self._lines.clear()
        self._taken.clear()
