"""Who is connected: one session per node, each with a bounded queue of messages to it, and a watch that notices when it falls silent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from fedscale.proto.v1 import node_pb2 as pb

log = structlog.get_logger()
QUEUE = 256
TICKS = 8


@dataclass(eq=False, slots=True)
class Session:
    """The open control stream of one node, which answers ``proposals`` or not.

    ``None`` in the queue ends it, ``replaced`` once another has taken its place.
    """

    node: str
    project: str
    datasets: frozenset[str]
    version: str
    identity: str = ""
    proposals: bool = False
    replaced: bool = False
    outbox: asyncio.Queue[pb.ServerMessage | None] = field(default_factory=lambda: asyncio.Queue(QUEUE))

    def send(self, message: pb.ServerMessage) -> bool:
        """Queue a message; a node that does not read is closed instead of being waited for."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("node does not read its messages", node=self.node)
            self.close()
            return False
        return True

    def close(self) -> None:
        """End the stream, dropping what was not sent."""
        while not self.outbox.empty():
            self.outbox.get_nowait()
        self.outbox.put_nowait(None)


class Sessions:
    """All open sessions by node."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}

    def add(self, session: Session) -> None:
        """Take a new session; an older one of the same node is closed, for a node has one life."""
        if older := self._open.get(session.node):
            older.replaced = True
            older.close()
        self._open[session.node] = session

    def remove(self, session: Session) -> bool:
        """Forget a session; ``False`` when a newer one has taken its place."""
        if self._open.get(session.node) is not session:
            return False
        del self._open[session.node]
        return True

    def close(self, node: str) -> None:
        """End a node's session, if it has one."""
        if session := self._open.get(node):
            session.close()

    def close_all(self) -> None:
        """End every session and forget it: whose stream ends from now on was sent away and did not leave."""
        for session in self._open.values():
            session.close()
        self._open.clear()

    def send(self, node: str, message: pb.ServerMessage) -> bool:
        """Send to a node; ``False`` when it is not connected."""
        session = self._open.get(node)
        return session.send(message) if session else False

    def get(self, node: str) -> Session | None:
        """The session of a node."""
        return self._open.get(node)

    def every(self) -> list[Session]:
        """All open sessions."""
        return list(self._open.values())

    def eligible(self, project: str, dataset: str) -> tuple[str, ...]:
        """Connected nodes of a project that offer a dataset, sorted."""
        return tuple(sorted(s.node for s in self._open.values() if s.project == project and dataset in s.datasets))

    def identities(self, nodes: Iterable[str]) -> dict[str, str]:
        """The identity keys, in hex, of those nodes that have one."""
        return {node: session.identity for node in nodes if (session := self._open.get(node)) and session.identity}


class Watch:
    """Notices that a node says nothing any more. Leave it with ``stop``.

    Silence is counted in ticks of the event loop: a server that was held up itself holds that against nobody.

    Args:
        seconds: how long a node may be silent.
        silent: called when it was.
    """

    def __init__(self, seconds: float, silent: Callable[[], object]) -> None:
        self._seconds, self._silent, self._left = seconds / TICKS, silent, float(TICKS)
        self._next = asyncio.get_running_loop().call_later(self._seconds, self._tick)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """The node has said something; while that is dealt with nobody listens, so nothing counts."""
        self._left = math.inf
        yield
        self._left = TICKS

    def stop(self) -> None:
        """Watch no more."""
        self._next.cancel()

    def _tick(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._silent()
        else:
            self._next = asyncio.get_running_loop().call_later(self._seconds, self._tick)
