"""A led run as its leader sees it: what it asks and is told, however often the coordinator goes away and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from fedscale.errors import Cause, Failure, Unreachable
from fedscale.letters import Arrival, Letter
from fedscale.proto.v1 import control_pb2 as pb
from fedscale_server.answers import RunInfo
from fedscale_server.control import FIRST_PAUSE, LONGEST_PAUSE, Control
from fedscale_server.parcels import put

T = TypeVar("T")
PATIENCE = 600.0
BATCH = 1024  # letters of one call


class Desk:
    """One led run.

    Args:
        control: the connection.
        run: its id.
        patience: seconds after which a coordinator that does not answer counts as unreachable.
        wait: sleeps.
    """

    def __init__(self, control: Control, run: str, patience: float = PATIENCE, wait: Callable[[float], None] = time.sleep) -> None:
        self._control, self.run, self._patience, self._wait = control, run, patience, wait

    def members(self) -> tuple[str, ...]:
        """Who takes part; waits until that is settled."""
        return self._patiently(lambda: tuple(next(self._control.collect(self.run)).members))

    def post(self, letters: Sequence[Letter], contents: Mapping[str, bytes]) -> None:
        """Send letters; what they hold is stored first where it is needed."""
        for start in range(0, len(letters), BATCH):
            batch = letters[start : start + BATCH]
            while missing := self._patiently(partial(self._control.post, self.run, batch)):
                for digest in missing:
                    self._patiently(partial(put, self._control, contents[digest], run=self.run))

    def arrivals(self) -> Iterator[Arrival]:
        """All that became of all letters, from the first one on, until the run is over."""
        after, pause, tried = 0, FIRST_PAUSE, 0.0
        while True:
            parts = bytearray()
            try:
                for part in self._control.collect(self.run, after):
                    pause, tried = FIRST_PAUSE, 0.0
                    parts += part.data
                    if part.sequence and not part.more:
                        after = part.sequence
                        yield _arrival(part, bytes(parts))
                        parts.clear()
            except Unreachable:
                if tried >= self._patience:
                    raise
                self._wait(pause)
                pause, tried = min(2 * pause, LONGEST_PAUSE), tried + pause
            else:
                return

    def conclude(self, reason: str, metrics: Sequence[tuple[str, int, Mapping[str, float]]], model: str = "") -> RunInfo:
        """Say that the leader has come to its end, well or why not, and which model it keeps, by its SHA-256."""
        return self._patiently(lambda: self._control.conclude(self.run, reason, metrics, model))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What the coordinator answers, as soon as it is there.

        Raises:
            Unreachable: it was away for too long.
        """
        pause, tried = FIRST_PAUSE, 0.0
        while True:
            try:
                return ask()
            except Unreachable:
                if tried >= self._patience:
                    raise
            self._wait(pause)
            pause, tried = min(2 * pause, LONGEST_PAUSE), tried + pause


def _arrival(part: pb.Reply, content: bytes) -> Arrival:
    """What became of a letter, from the last part of it."""
    cause = Cause(part.cause) if part.cause in set(Cause) else Cause.WORKER
    failure = Failure(cause, part.what, part.where, part.hint) if part.cause else None
    return Arrival(part.node, part.number, content, failure)
