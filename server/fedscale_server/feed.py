"""What watchers of a run see: every journaled step, and between them the passing signs of progress."""

from __future__ import annotations

import asyncio
import json
import math
from enum import Enum
from typing import Any, TypeAlias

from fedscale.proto.v1 import control_pb2 as pb

QUEUE = 1024


class End(Enum):
    """Why a watcher hears no more."""

    OVER = "the run is over"
    BEHIND = "this watcher does not keep up"
    DOWN = "the server goes down"


Watcher: TypeAlias = "asyncio.Queue[pb.RunEvent | End]"


class Feed:
    """Fans one run's events out to any number of watchers, none of whom can slow the run down."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._end: End | None = None

    def watch(self) -> Watcher:
        """A queue that receives all events from now on, and at last why there are no more."""
        queue: Watcher = asyncio.Queue(QUEUE)
        if self._end is None:
            self._watchers.add(queue)
        else:
            queue.put_nowait(self._end)
        return queue

    @property
    def waiting(self) -> int:
        """Events that watchers have not taken yet, all of them together."""
        return sum(queue.qsize() for queue in self._watchers)

    def leave(self, queue: Watcher) -> None:
        """Stop watching."""
        self._watchers.discard(queue)

    def publish(self, event: pb.RunEvent) -> None:
        """Hand an event to all; a watcher that does not keep up misses passing signs first, then is cut off and may come back with ``after``."""
        for queue in list(self._watchers):
            if event.sequence == 0 and queue.qsize() >= QUEUE // 2:
                continue
            if queue.qsize() < QUEUE - 1:
                queue.put_nowait(event)
            else:
                self._watchers.discard(queue)
                queue.put_nowait(End.BEHIND)

    def close(self, end: End) -> None:
        """Let all watchers go; the first reason counts."""
        self._end = self._end or end
        for queue in self._watchers:
            queue.put_nowait(end)
        self._watchers.clear()


def run_event(sequence: int, at: float, kind: str, where: tuple[str, int], detail: dict[str, Any], node: str = "") -> pb.RunEvent:
    """One event as watchers get it; a number that is not finite becomes ``null``, as JSON has none."""
    return pb.RunEvent(
        sequence=sequence,
        at=at,
        kind=kind,
        node=node,
        phase=where[0],
        number=where[1],
        detail=json.dumps(_finite(detail), allow_nan=False, separators=(",", ":")),
    )


def _finite(value: Any) -> Any:
    """A JSON value without numbers that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
