"""Led runs: the letters that a run's leader sends to its nodes, and what becomes of each. Pure: no clock, socket or disk.

The leader is a program of whoever submitted the run, outside the coordinator. It is told of every reply by itself; so when it
is started again, it is told the same replies in the same order and, unless it asks for something else, comes to the same end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from fedscale.errors import Conflict, Failure

# Node and number of a letter.
Place: TypeAlias = tuple[str, int]

RUNNING = "running"
MODEL = "model.safetensors"  # what a leader keeps of its run


@dataclass(frozen=True, slots=True)
class Letter:
    """One message to one node.

    Args:
        node: whom it is for.
        number: from 1, of the letters to this node, which are answered one after the other.
        envelope: what the node's app reads beside the content, as JSON.
        content: SHA-256 of the content, in hex.
        size: bytes of the content.
        seconds: within which it is to be answered.
        phase: ``train``, ``evaluate``, or any word.
        round: to which it counts in the run's record.
    """

    node: str
    number: int
    envelope: str
    content: str
    size: int
    seconds: float
    phase: str
    round: int

    @property
    def place(self) -> Place:
        """What no other letter of the run has."""
        return self.node, self.number


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a letter.

    Args:
        sequence: of its line in the journal.
        node: who was asked.
        number: of the letter.
        digest: SHA-256 of the reply; empty where there is none.
        failure: why there is none.
    """

    sequence: int
    node: str
    number: int
    digest: str = ""
    failure: Failure | None = None

    @property
    def place(self) -> Place:
        """The letter's."""
        return self.node, self.number


@dataclass(frozen=True, slots=True)
class Post:
    """A letter as it arrives at a node's app.

    Args:
        envelope: as in ``Letter``.
        content: the bytes.
        state: what ``Posted`` said the last time; empty at first.
        data: the site's dataset.
    """

    envelope: str
    content: bytes
    state: bytes
    data: Any


@dataclass(frozen=True, slots=True)
class Posted:
    """An app's answer to a letter.

    Args:
        content: the bytes.
        state: what it wants to be given with the next letter.
    """

    content: bytes
    state: bytes


@runtime_checkable
class Correspondent(Protocol):
    """An app that answers letters."""

    def reply(self, post: Post) -> Posted:
        """Answer one; exceptions are reported as those of any app."""


@dataclass(slots=True)
class Correspondence:
    """The state of a led run, rebuilt from its journal line by line."""

    members: tuple[str, ...] = ()
    letters: dict[Place, Letter] = field(default_factory=dict)
    replies: dict[Place, Reply] = field(default_factory=dict)
    open: dict[str, list[Letter]] = field(default_factory=dict)
    status: str = RUNNING
    reason: str = ""
    paused: bool = False

    @property
    def phase(self) -> str:
        """Of the newest letter."""
        return self._newest.phase if self.letters else "init"

    @property
    def number(self) -> int:
        """The round of the newest letter; 0 before the first."""
        return self._newest.round if self.letters else 0

    @property
    def _newest(self) -> Letter:
        return self.letters[next(reversed(self.letters))]

    def fresh(self, letters: Iterable[Letter]) -> list[Letter]:
        """Those that were not posted before.

        Raises:
            Conflict: one goes to nobody, is out of turn, or is another one than was posted in its place.
        """
        new: dict[Place, Letter] = {}
        for letter in letters:
            known = self.letters.get(letter.place) or new.get(letter.place)
            if known is None:
                self._require_turn(letter, new)
                new[letter.place] = letter
            elif known != letter:
                why = f"letter {letter.number} to '{letter.node}' differs from the one in the journal"
                hint = "a leader that is taken up again must ask the same as before: seed whatever it draws"
                raise Conflict("the leader does not ask what it has asked before", why=why, hint=hint)
        return list(new.values())

    def _require_turn(self, letter: Letter, new: Mapping[Place, Letter]) -> None:
        """Refuse a letter to nobody, or one before which others are missing.

        Raises:
            Conflict: it is one.
        """
        if letter.node not in self.members:
            raise Conflict(f"'{letter.node}' takes no part in this run", hint="who does was settled when the run began")
        before = (letter.node, letter.number - 1)
        if letter.number != 1 and before not in self.letters and before not in new:
            raise Conflict(f"letter {letter.number} to '{letter.node}' comes before an earlier one")

    def post(self, letter: Letter) -> None:
        """Take a letter."""
        self.letters[letter.place] = letter
        self.open.setdefault(letter.node, []).append(letter)

    def settle(self, reply: Reply) -> None:
        """Take what became of one; the first time counts."""
        if reply.place not in self.replies:
            self.replies[reply.place] = reply
            self.open[reply.node] = [letter for letter in self.open[reply.node] if letter.number != reply.number]

    def lose(self, place: Place, failure: Failure) -> None:
        """The content of a reply is gone: in its place in the order of replies there is a failure."""
        self.replies[place] = replace(self.replies[place], digest="", failure=failure)

    def due(self, node: str) -> Letter | None:
        """What a node is to answer now; it works on one letter at a time."""
        return None if self.paused or self.status != RUNNING or not self.open.get(node) else self.open[node][0]

    def owes(self, place: Place) -> bool:
        """Whether this very letter is to be answered now; a pause costs nobody the answer that is under way."""
        waiting = self.open.get(place[0], [])
        return self.status == RUNNING and [letter.place for letter in waiting[:1]] == [place]

    def needs(self, content: str) -> bool:
        """Whether a content is to be read by somebody yet."""
        return any(letter.content == content for letters in self.open.values() for letter in letters)

    def after(self, sequence: int) -> list[Reply]:
        """Replies whose line comes after this one, in order."""
        found = []
        for reply in reversed(self.replies.values()):
            if reply.sequence <= sequence:
                break
            found.append(reply)
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of a letter, as its leader is told.

    Args:
        node: who was asked.
        number: of the letter.
        content: the reply; empty where there is none.
        failure: why there is none.
    """

    node: str
    number: int
    content: bytes
    failure: Failure | None = None

    @property
    def place(self) -> Place:
        """The letter's."""
        return self.node, self.number


class Office(Protocol):
    """A led run as its leader sees it; every call waits until the coordinator is there."""

    def members(self) -> tuple[str, ...]:
        """Who takes part."""

    def post(self, letters: Sequence[Letter], contents: Mapping[str, bytes]) -> None:
        """Send letters; ``contents`` by digest."""

    def arrivals(self) -> Iterator[Arrival]:
        """All that became of all letters, those of the leader's earlier lives first, until the run is over."""
