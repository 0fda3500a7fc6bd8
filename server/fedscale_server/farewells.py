"""Tells nodes which runs are over, so that they drop what they keep for them.

A node does not say that it heard it, and whoever ends a run may be killed before anybody is told. What apps remember of a led run
a node does not look into, so it hears the end again whenever it comes, for as long as it may remember anything. For which private
runs it keeps room under a cap it knows, and asks. Hearing it twice does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from fedscale.errors import NotFound
from fedscale.learner import Phase
from fedscale.proto.v1 import node_pb2
from fedscale.wire.convert import key_to_proto
from fedscale_server.letterbook import ROSTER

if TYPE_CHECKING:
    from datetime import datetime

    from fedscale_server.sessions import Session, Sessions
    from fedscale_server.store.store import Store

MOST_RUNS, LONGEST = 64, timedelta(days=90)  # of so many and for so long a node remembers anything
OVER = 0  # the number of no letter


class Farewells:
    """The led runs that have ended lately, and who took part; of other runs, a word on the way.

    Args:
        sessions: who is connected.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._members: dict[str, frozenset[str]] = {}

    def load(self, store: Store, now: datetime) -> None:
        """Begin with the runs that the database knows. Blocks."""
        lines = store.lines_of_ended(ROSTER, now - LONGEST, MOST_RUNS)
        self._members = {line.run: frozenset(line.payload["event"]["nodes"]) for line in reversed(lines)}

    def over(self, run: str, members: Iterable[str]) -> None:
        """A run has ended: whoever is there hears it now."""
        self._members[run] = frozenset(members)
        for old in list(self._members)[:-MOST_RUNS]:
            del self._members[old]
        for node in self._members[run]:
            self._tell(node, run)

    def end(self, run: str, project: str) -> None:
        """A private run of a project has ended: whoever is there and may have kept room for it hears it now."""
        for session in self._sessions.every():
            if session.project == project:
                self._tell(session.node, run)

    async def answer(self, session: Session, runs: Sequence[str], store: Store) -> None:
        """A node asks for the ends of some runs."""
        for run in runs[:MOST_RUNS]:
            if await asyncio.to_thread(_asks_no_more, store, run, session.project):
                self._tell(session.node, run)

    def greet(self, node: str) -> None:
        """A node is there: it may have missed the end of any run that it took part in."""
        for run, members in self._members.items():
            if node in members:
                self._tell(node, run)

    def _tell(self, node: str, run: str) -> None:
        key = key_to_proto((run, Phase.MESSAGE, OVER))
        self._sessions.send(node, node_pb2.ServerMessage(release=node_pb2.Release(key=key)))


def _asks_no_more(store: Store, run: str, project: str) -> bool:
    """Whether a run is over, or none that could ask a project's nodes. Blocks."""
    try:
        row = store.run(run, record=False)
    except NotFound:
        return True
    return row.id != run or row.project != project or row.finished is not None
