"""Hands the letters of a led run to its nodes, one at a time to each, and keeps the time that each letter and each node has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fedscale.causes import GONE
from fedscale.errors import Cause, Failure
from fedscale.learner import Phase
from fedscale.letters import Letter, Place
from fedscale.proto.v1 import node_pb2
from fedscale.wire.convert import key_to_proto, letter_to_proto
from fedscale_server.timers import Timers

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale_server.letterbook import Letterbook
    from fedscale_server.sessions import Sessions


class Delivery:
    """The way of letters to nodes.

    Args:
        book: the run.
        sessions: who is connected.
        clock: what time it is.
        give_up: told which letter will not be answered, and why.
    """

    def __init__(self, book: Letterbook, sessions: Sessions, clock: Clock, give_up: Callable[[Place, Failure], None]) -> None:
        self._book, self._sessions, self._clock, self._give_up = book, sessions, clock, give_up
        self.timers = Timers()

    def begin(self) -> None:
        """Hand out what is open, at the beginning or after a restart, which gives everybody the time of a lost node to come back."""
        for letters in self._book.run.open.values():
            for letter in letters:
                self.limit(letter, self._book.plan.clients.rejoin)
        for node in self._book.run.members:
            self.send(node)

    def send(self, node: str) -> None:
        """Give a node the letter that it is to answer now."""
        letter = self._book.run.due(node)
        if letter is None:
            return
        seconds = max(self._left(letter), self._book.plan.clients.rejoin)
        message = letter_to_proto(self._book.row.id, letter, self._book.row.plan, self._book.row.bundle, seconds)
        if not self._sessions.send(node, node_pb2.ServerMessage(assignment=message)):
            self.miss(node)

    def miss(self, node: str) -> None:
        """A node is away; if it stays so for too long, it will answer none of its letters."""
        self.timers.arm(f"absent/{node}", self._book.plan.clients.rejoin, partial(self._lose, node))

    def limit(self, letter: Letter, least: float = 0.0) -> None:
        """Give a letter up when its time is over."""
        late = Failure(Cause.TIMEOUT, f"no answer within {letter.seconds:g} s", hint="raise clients.deadline, or the ServerApp's own timeout")
        name = f"late/{letter.node}/{letter.number}"
        self.timers.arm(name, max(self._left(letter), least), partial(self._give_up, letter.place, late))

    def release(self, place: Place) -> None:
        """Nobody waits for a letter's answer any more; the node may drop it."""
        key = key_to_proto((self._book.row.id, Phase.MESSAGE, place[1]))
        self._sessions.send(place[0], node_pb2.ServerMessage(release=node_pb2.Release(key=key)))

    def _lose(self, node: str) -> None:
        if self._sessions.get(node) is None:
            for letter in list(self._book.run.open.get(node, ())):
                self._give_up(letter.place, GONE)

    def _left(self, letter: Letter) -> float:
        """Seconds that a letter has yet."""
        return letter.seconds - (self._clock.now() - self._book.posted_at[letter.place]).total_seconds()
