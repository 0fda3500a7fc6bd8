"""What watchers of a run see: every journaled step, and between them the passing signs of progress."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fedscale.proto.v1 import control_pb2 as pb

QUEUE = 1024


class Feed:
    """Fans one run's events out to any number of watchers, none of whom can slow the run down."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Queue[pb.RunEvent | None]] = set()

    def watch(self) -> asyncio.Queue[pb.RunEvent | None]:
        """A queue that receives all events from now on; ``None`` says that it overflowed or the run is over."""
        queue: asyncio.Queue[pb.RunEvent | None] = asyncio.Queue(QUEUE)
        self._watchers.add(queue)
        return queue

    def leave(self, queue: asyncio.Queue[pb.RunEvent | None]) -> None:
        """Stop watching."""
        self._watchers.discard(queue)

    def publish(self, event: pb.RunEvent) -> None:
        """Hand an event to all; a watcher that does not keep up is cut off and may come back with ``after``."""
        for queue in list(self._watchers):
            if queue.qsize() >= QUEUE - 1:
                self._watchers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def close(self) -> None:
        """The run is over."""
        for queue in self._watchers:
            queue.put_nowait(None)
        self._watchers.clear()


def run_event(sequence: int, at: float, kind: str, where: tuple[str, int], detail: dict[str, Any], node: str = "") -> pb.RunEvent:
    """One event as watchers get it."""
    return pb.RunEvent(
        sequence=sequence,
        at=at,
        kind=kind,
        node=node,
        phase=where[0],
        number=where[1],
        detail=json.dumps(detail, allow_nan=False, separators=(",", ":")),
    )
