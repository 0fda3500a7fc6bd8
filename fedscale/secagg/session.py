"""What everybody computes alike once all session keys are known: the session, its graph, and what is derived for each seat."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedscale.errors import ProtocolError, UpdateRejected
from fedscale.ring import WORD, Pieces, Words
from fedscale.secagg.codec import Seats
from fedscale.secagg.graph import Graph, build
from fedscale.secagg.keys import KEY, derive, seal, unseal, verify
from fedscale.secagg.messages import Directory, Keys
from fedscale.secagg.terms import Roster, Terms
from fedscale.secagg.transcript import digest, frame

ENDS = struct.Struct(">QQ")
SELF, PAIR = "self mask", "pair masks"


@dataclass(frozen=True, slots=True)
class Session:
    """One round among the nodes of a directory; nothing in it is secret.

    Args:
        terms: what all agreed to.
        roster: who may take part.
        directory: the session keys.
        members: index in the roster by seat.
        id: hash of the terms and all signed keys.
        graph: who shares masks with whom.
        threshold: how many shares rebuild a secret.
    """

    terms: Terms
    roster: Roster
    directory: Directory
    members: tuple[int, ...]
    id: bytes
    graph: Graph
    threshold: int

    @classmethod
    def of(cls, terms: Terms, roster: Roster, directory: Directory) -> Session:
        """Everything that follows from a directory.

        Raises:
            ProtocolError: a node is not on the roster.
            PlanError: no parameters are safe for so many nodes.
            PolicyRefusal: more of the roster is missing than may drop out.
        """
        members = directory.seats
        if not members or members[-1] >= len(roster.members):
            raise ProtocolError("the directory lists a node that is not on the roster")
        parameters = terms.parameters(len(members), len(roster.members))
        name = directory.session(terms.digest)
        return cls(terms, roster, directory, members, name, build(len(members), parameters, name), parameters.threshold)

    def name(self, seat: int) -> str:
        """The name of the node at a seat."""
        return self.roster.members[self.members[seat]].name

    def names(self, seats: Iterable[int]) -> tuple[str, ...]:
        """The names of some seats, ascending."""
        listed, members = self.roster.members, self.members
        return tuple([listed[members[seat]].name for seat in sorted(seats)])

    def who(self, seat: int) -> str:
        """The node at a seat, for people."""
        return f"node '{self.name(seat)}'"

    def verified(self, seat: int) -> Keys:
        """The keys of a seat.

        Raises:
            ProtocolError: the member on the roster did not sign them for these terms.
        """
        keys = self.directory.keys(seat, self.members[seat])
        verify_keys(keys, self.roster, self.terms)
        return keys

    def check_id(self, session: bytes) -> None:
        """Refuse a message of another session.

        Raises:
            ProtocolError: it is one.
        """
        if session != self.id:
            raise ProtocolError("a message belongs to another session", why="the session is the hash of all keys of this round")

    def context(self, first: int, second: int) -> tuple[bytes | int, ...]:
        """Session, round, from and to."""
        return (self.id, self.terms.round, first, second)

    def box_context(self, dealer: int, holder: int) -> bytes:
        """What a sealed pair of shares is bound to."""
        return frame("shares", *self.context(dealer, holder), self.graph.digest)

    def commitment(self, use: str, dealer: int, holder: int, value: bytes) -> bytes:
        """A hash that binds a node to a random value of 32 bytes without telling it."""
        return hashlib.sha256(_about(self.id, self.terms.round, use) + ENDS.pack(dealer, holder) + value).digest()

    def pair_commitment(self, one: int, other: int, mask: bytes) -> bytes:
        """The hash of a pair's mask key, the same from both ends."""
        return self.commitment("pair", min(one, other), max(one, other), mask)

    def self_mask(self, seat: int, secret: bytes) -> bytes:
        """The key of a node's self mask in this round."""
        return derive(secret, self.id, frame(SELF, *self.context(seat, seat)))

    def escrow(self, seat: int, secret: bytes, masks: Iterable[bytes]) -> bytes:
        """A node's mask keys, ascending by seat of the neighbour, sealed under what ``secret`` gives."""
        return seal(self._escrow_key(seat, secret), b"".join(masks), self._escrow_context(seat))

    def open_escrow(self, seat: int, secret: bytes, box: bytes) -> list[bytes]:
        """What ``escrow`` sealed.

        Raises:
            ProtocolError: it was not sealed by that node in this session under that secret.
        """
        text = unseal(self._escrow_key(seat, secret), box, self._escrow_context(seat), f"the escrow of {self.who(seat)}")
        return [text[at : at + KEY] for at in range(0, len(text), KEY)]

    def _escrow_key(self, seat: int, secret: bytes) -> bytes:
        return derive(secret, self.id, self._escrow_context(seat))

    def _escrow_context(self, seat: int) -> bytes:
        return frame(PAIR, *self.context(seat, seat), self.graph.digest)


@lru_cache(maxsize=64)
def _about(session: bytes, number: int, use: str) -> bytes:
    """What all commitments of a session to one kind of value begin with; what follows has a fixed length."""
    return frame("commitment", session, number, use.encode())


def verify_keys(keys: Keys, roster: Roster, terms: Terms) -> None:
    """Check that the member on the roster signed its session keys for these terms.

    Raises:
        ProtocolError: it did not.
    """
    member = roster.members[keys.member]
    verify(member.key, keys.signature, keys.signed(terms.digest), f"the keys of node '{member.name}'")


def advance(transcript: bytes, stage: str, present: frozenset[int]) -> bytes:
    """The transcript after a stage that these seats have passed."""
    return digest("stage", transcript, stage.encode(), Seats().write(present))


def consent_text(transcript: bytes, seat: int) -> bytes:
    """What a node signs to say that it was told of these survivors and of everything before."""
    return frame("consent", transcript, seat)


def check_words(words: Words, terms: Terms) -> None:
    """Refuse a vector that is not in the ring or might pass it.

    Raises:
        UpdateRejected: wrong length or dtype, or a word beyond the limit.
    """
    check_length(words, terms)
    check_range(words, terms)


def check_length(words: Pieces, terms: Terms) -> None:
    """Refuse a vector that is not one of this round.

    Raises:
        UpdateRejected: wrong length or dtype.
    """
    if words.dtype != WORD or words.shape != (terms.length,):
        raise UpdateRejected(f"a vector of {words.size} words of {words.dtype}", why=f"the round asks for {terms.length} of {WORD}")


def check_range(words: Words, terms: Terms) -> None:
    """Refuse words whose sum might pass the ring.

    Raises:
        UpdateRejected: one is beyond the limit.
    """
    values = words.view(np.int32)
    if values.min() < -terms.limit or values.max() > terms.limit:
        raise UpdateRejected("a word of the vector is beyond the agreed range", why=f"the limit is {terms.limit}")
