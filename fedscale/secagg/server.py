"""The server's side of a round: one class a state, answers in, the next messages out.

The server draws no random numbers and keeps no clock: its messages are a function of the answers it was given and of
when each stage was closed, so replaying them after a restart gives the same bytes. Whoever has not answered when a stage
is closed has dropped out. Before any share is asked for, every secret that the sum needs is known to have a threshold of
holders left; otherwise the round is given up and nothing is opened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from fedscale.errors import FedscaleError, ProtocolError, RunFailed, UpdateRejected
from fedscale.ring import WORD, Words, add
from fedscale.secagg import messages as m
from fedscale.secagg import prg, shamir
from fedscale.secagg.keys import KEY, TAG, check_public, verify
from fedscale.secagg.parameters import Profile
from fedscale.secagg.prg import Core, Mask
from fedscale.secagg.session import Session, advance, consent_text, verify_keys
from fedscale.secagg.terms import Roster, Terms

Outbox: TypeAlias = dict[str, bytes]
Body: TypeAlias = bytes | memoryview | Words | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round gave.

    Args:
        words: the sum of the survivors' vectors, shape ``(terms.length,)``.
        survivors: whose vectors are in it.
        dropped: who shared secrets and then sent no vector.
        complaints: what was wrong with single answers and did no harm.
        masked: whether the protocol was run; a sum in the clear is only for simulations.
    """

    words: Words = field(repr=False)
    survivors: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    masked: bool = True


# --------------------------------------------------------------------------------------------------------------- states


@dataclass(slots=True)
class Advertising:
    """Collects session keys."""

    terms: Terms
    roster: Roster
    answers: dict[int, m.Keys] = field(default_factory=dict)

    def receive(self, name: str, message: m.Message, body: Body) -> None:  # noqa: ARG002 - one shape for all states
        """Take a node's keys once they are known to be its own and usable."""
        keys, member = m.expect(message, m.Keys), self.roster.index(name)
        if keys.member != member:
            raise ProtocolError(f"node '{name}' sent the keys of another")
        verify_keys(keys, self.roster, self.terms)
        check_public(keys.curve, keys.kem, f"node '{name}'")
        self.answers.setdefault(member, keys)

    def close(self) -> tuple[State, Outbox]:
        """Everybody's keys to everybody."""
        directory = m.Directory.of(self.answers.values())
        session = Session.of(self.terms, self.roster, directory)
        return Agreeing(session, session.id), dict.fromkeys(session.names(range(len(session.members))), m.encode(directory))


@dataclass(slots=True)
class Stage:
    """What all stages after the first have: the session, its transcript so far and what went wrong without harm."""

    session: Session
    transcript: bytes
    complaints: list[str] = field(default_factory=list, kw_only=True)

    def seat(self, name: str, session: bytes, among: frozenset[int]) -> int:
        """The seat of a sender.

        Raises:
            ProtocolError: of another session, or somebody whose answer is not due.
        """
        self.session.check_id(session)
        member = self.session.roster.index(name)
        seat = self.session.members.index(member) if member in self.session.directory.members else -1
        if seat not in among:
            raise ProtocolError(f"nothing is due from node '{name}'")
        return seat

    def everybody(self) -> frozenset[int]:
        """All seats."""
        return frozenset(range(len(self.session.members)))

    def to_all(self, seats: frozenset[int], message: m.Message) -> Outbox:
        """The same message to some seats."""
        return dict.fromkeys(self.session.names(seats), m.encode(message))


@dataclass(slots=True)
class Agreeing(Stage):
    """Collects ciphertexts."""

    answers: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def receive(self, name: str, message: m.Message, body: Body) -> None:  # noqa: ARG002 - one shape for all states
        """Take a node's ciphertexts: one for each neighbour with a higher seat."""
        agreement = m.expect(message, m.Agreement)
        seat, items = self.seat(name, agreement.session, self.everybody()), m.by_seat(agreement.items)
        if set(items) != {other for other in self.session.graph.neighbours(seat) if other > seat}:
            raise ProtocolError(f"node '{name}' did not address its neighbours")
        self.answers.setdefault(seat, items)

    def close(self) -> tuple[State, Outbox]:
        """To each node the ciphertexts for it."""
        present, inbox = frozenset(self.answers), _inbox(self.answers)
        outbox = {self.session.name(seat): m.encode(m.Agreed(self.session.id, present, inbox.get(seat, ()))) for seat in sorted(present)}
        return Sharing(self.session, advance(self.transcript, "agreed", present), present, complaints=self.complaints), outbox


def _inbox(answers: Mapping[int, Mapping[int, bytes]]) -> dict[int, tuple[m.Item, ...]]:
    """What was sent to each seat, by sender, out of what each seat sent."""
    letters: defaultdict[int, list[m.Item]] = defaultdict(list)
    for sender in sorted(answers):
        for receiver, data in answers[sender].items():
            letters[receiver].append(m.Item(sender, data))
    return {receiver: tuple(items) for receiver, items in letters.items()}


@dataclass(slots=True)
class Sharing(Stage):
    """Collects sealed shares."""

    agreed: frozenset[int]
    answers: dict[int, m.Shares] = field(default_factory=dict)

    def receive(self, name: str, message: m.Message, body: Body) -> None:  # noqa: ARG002 - one shape for all states
        """Take a node's shares: a parcel for each holder that is still there, and an escrow of the right size."""
        shares = m.expect(message, m.Shares)
        seat, graph = self.seat(name, shares.session, self.agreed), self.session.graph
        pairs = self.agreed.intersection(graph.neighbours(seat))
        if [parcel.seat for parcel in shares.parcels] != sorted(self.agreed.intersection(graph.holders(seat))):
            raise ProtocolError(f"node '{name}' did not share with its neighbours")
        if len(shares.escrow) != KEY * len(pairs) + TAG:
            raise ProtocolError(f"node '{name}' sent an escrow of a wrong size")
        self.answers.setdefault(seat, shares)

    def close(self) -> tuple[State, Outbox]:
        """To each node its boxes; nodes that do not agree with their neighbours about the masks of the pair are left out."""
        self._exclude()
        session, present = self.session, frozenset(self.answers)
        inbox = _inbox({seat: {p.seat: p.box for p in shares.parcels if p.seat != seat} for seat, shares in self.answers.items()})
        outbox = {session.name(seat): m.encode(m.Boxes(session.id, present, inbox.get(seat, ()))) for seat in sorted(present)}
        return Masking(session, advance(self.transcript, "shared", present), self.answers, complaints=self.complaints), outbox

    def _exclude(self) -> None:
        """Leave out whoever disagrees with most neighbours, until nobody disagrees."""
        pairs = {seat: {parcel.seat: parcel.pair for parcel in shares.parcels} for seat, shares in self.answers.items()}
        disputes = {(one, other) for one in pairs for other in pairs[one].keys() & pairs if pairs[one][other] != pairs[other].get(one)}
        while disputes:
            worst, _ = Counter(one for one, _ in sorted(disputes)).most_common(1)[0]
            disputes = {pair for pair in disputes if worst not in pair}
            del self.answers[worst]
            self.complaints.append(f"{self.session.who(worst)} does not agree with its neighbours about their masks")


@dataclass(slots=True)
class Masking(Stage):
    """Adds up masked vectors."""

    shares: dict[int, m.Shares]
    answers: set[int] = field(default_factory=set)
    total: Words = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin with zeros."""
        self.total = np.zeros(self.session.terms.length, WORD)

    def receive(self, name: str, message: m.Message, body: Body) -> None:
        """Add a node's vector, once."""
        seat = self.seat(name, m.expect(message, m.Masked).session, frozenset(self.shares))
        if seat not in self.answers:
            add(self.total, _vector(body, self.session.terms))
            self.answers.add(seat)

    def close(self) -> tuple[State, Outbox]:
        """The survivors to the survivors, unless somebody's secrets have too few holders left."""
        session, present = self.session, frozenset(self.answers)
        for dealer, shares in self.shares.items():
            left = len(present.intersection(parcel.seat for parcel in shares.parcels))
            if left < session.threshold:
                raise RunFailed(
                    "the sum cannot be opened", why=f"{session.who(dealer)} has {left} neighbours left, the threshold is {session.threshold}"
                )
        outbox = self.to_all(present, m.Survivors(session.id, present))
        transcript = advance(self.transcript, "survivors", present)
        opening = Unmasking(session, transcript, self.shares, present, self.total, complaints=self.complaints)
        return (Consenting(session, transcript, opening) if session.terms.profile is Profile.MALICIOUS else opening), outbox


def _vector(body: Body, terms: Terms) -> Words:
    """The words beside a message.

    Raises:
        UpdateRejected: not as many as the terms say.
    """
    if terms.bits != WORD.itemsize * 8 and not isinstance(body, np.ndarray):
        return prg.unpack(bytes(body or b""), terms.length)
    words = body if isinstance(body, np.ndarray) else np.frombuffer(body or b"", np.uint8)
    if words.nbytes != terms.length * WORD.itemsize:
        raise UpdateRejected(f"a masked vector of {words.nbytes} bytes", why=f"the round asks for {terms.length * WORD.itemsize}")
    return words.view(WORD)


@dataclass(slots=True)
class Consenting(Stage):
    """Collects signatures of the survivors."""

    opening: Unmasking
    answers: dict[int, bytes] = field(default_factory=dict)

    def receive(self, name: str, message: m.Message, body: Body) -> None:  # noqa: ARG002 - one shape for all states
        """Take a signature of the survivors and of everything before."""
        consent, session = m.expect(message, m.Consent), self.session
        seat = self.seat(name, consent.session, self.opening.survivors)
        key = session.roster.members[session.members[seat]].key
        verify(key, consent.signature, consent_text(self.transcript, seat), f"the survivors by {session.who(seat)}")
        self.answers.setdefault(seat, consent.signature)

    def close(self) -> tuple[State, Outbox]:
        """To each node a threshold of its neighbours' signatures; one with fewer could only refuse."""
        session, outbox = self.session, {}
        for seat in sorted(self.answers):
            signers = sorted(self.answers.keys() & session.graph.holders(seat))[: session.threshold]
            if len(signers) == session.threshold:
                items = tuple(m.Item(signer, self.answers[signer]) for signer in signers)
                outbox[session.name(seat)] = m.encode(m.Consents(session.id, items))
        return self.opening, outbox


@dataclass(slots=True)
class Unmasking(Stage):
    """Collects shares and opens the sum."""

    shares: dict[int, m.Shares]
    survivors: frozenset[int]
    total: Words = field(repr=False)
    answers: set[int] = field(default_factory=set)
    opened: dict[int, dict[int, bytes]] = field(default_factory=dict, repr=False)
    promised: dict[tuple[int, int, str], bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Table what the dealers committed to."""
        parcels = [(dealer, parcel) for dealer, shares in self.shares.items() for parcel in shares.parcels]
        self.promised = {(dealer, parcel.seat, "self"): parcel.self_share for dealer, parcel in parcels}
        self.promised |= {(dealer, parcel.seat, "pair"): parcel.pair_share for dealer, parcel in parcels}

    def receive(self, name: str, message: m.Message, body: Body) -> None:  # noqa: ARG002 - one shape for all states
        """Take the shares of one holder; one that is not what its dealer committed to is noted and left aside."""
        opened = m.expect(message, m.Opened)
        seat = self.seat(name, opened.session, self.survivors)
        if seat in self.answers:
            return
        parts = {"self": m.by_seat(opened.self_shares), "pair": m.by_seat(opened.pair_shares)}
        if not parts["self"].keys() <= self.survivors or not parts["pair"].keys() <= self.shares.keys() - self.survivors:
            raise ProtocolError(f"node '{name}' opened shares that nobody asked for")
        self.answers.add(seat)
        for use, shares in parts.items():
            for dealer, share in shares.items():
                self._take(use, dealer, seat, share)

    def _take(self, use: str, dealer: int, holder: int, share: bytes) -> None:
        """Keep a share if it is what the dealer committed to."""
        if self.promised.get((dealer, holder, use)) == self.session.commitment(f"{use} share", dealer, holder, share):
            self.opened.setdefault(dealer, {})[holder + 1] = share
        else:
            self.complaints.append(f"the share of {self.session.who(dealer)} that {self.session.who(holder)} opened is not the one dealt")

    def close(self, core: Core) -> tuple[State, Outbox]:
        """Take all masks away.

        Raises:
            RunFailed: too few shares, a node escrowed wrong keys, or the sum is beyond what honest nodes can send.
        """
        session, terms = self.session, self.session.terms
        masks = [mask for dealer in sorted(self.shares) for mask in self._masks(dealer)]
        total = prg.signed(prg.masked(self.total, masks, core), terms.bits)
        values, most = total.view(np.int32), terms.limit * len(self.survivors)
        if values.min() < -most or values.max() > most:
            raise RunFailed("the sum is beyond what these nodes may send", why=f"{len(self.survivors)} vectors within {terms.limit}")
        dropped = session.names(self.shares.keys() - self.survivors)
        return Done(Outcome(total, session.names(self.survivors), dropped, tuple(self.complaints))), {}

    def _masks(self, dealer: int) -> Iterator[Mask]:
        """What takes the masks of one node out of the sum: its own, or those of its pairs if it dropped out."""
        session, shares = self.session, self.shares[dealer]
        use = "self" if dealer in self.survivors else "pair"
        opened = self.opened.get(dealer, {})
        if len(opened) < session.threshold:
            raise RunFailed("the sum cannot be opened", why=f"{len(opened)} shares of {session.who(dealer)}, the threshold is {session.threshold}")
        # In ascending order, so that the same holders give the same coefficients.
        secret = shamir.combine(dict(sorted(opened.items())), session.threshold)
        if session.commitment(f"{use} secret", dealer, dealer, secret) != (shares.self_secret if use == "self" else shares.pair_secret):
            raise RunFailed("the sum cannot be opened", why=f"{session.who(dealer)} dealt shares of another secret than it committed to")
        if use == "self":
            yield Mask(session.self_mask(dealer, secret), negative=True)
            return
        others = [parcel for parcel in shares.parcels if parcel.seat != dealer]
        for parcel, key in zip(others, session.open_escrow(dealer, secret, shares.escrow), strict=True):
            if session.pair_commitment(dealer, parcel.seat, key) != parcel.pair:
                raise RunFailed("the sum cannot be opened", why=f"{session.who(dealer)} dropped out and had escrowed wrong mask keys")
            if parcel.seat in self.survivors:
                yield Mask(key, negative=dealer > parcel.seat)


@dataclass(frozen=True, slots=True)
class Done:
    """The sum is open."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Aborted:
    """The round was given up."""

    reason: FedscaleError


Collecting: TypeAlias = Advertising | Agreeing | Sharing | Masking | Consenting | Unmasking
State: TypeAlias = Collecting | Done | Aborted


# ---------------------------------------------------------------------------------------------------------- the machine


class Server:
    """Drives the states of a round.

    Args:
        terms: what the round is about.
        roster: who may take part.
        core: what computes masks.
    """

    def __init__(self, terms: Terms, roster: Roster, core: Core = Core.GCM) -> None:
        self.state: State = Advertising(terms, roster)
        self.terms, self.roster, self._core = terms, roster, core

    def open(self) -> Outbox:
        """The first message, to everybody on the roster."""
        return dict.fromkeys((member.name for member in self.roster.members), m.encode(m.Open(self.terms)))

    def receive(self, name: str, data: bytes, body: Body = None) -> None:
        """Take an answer of the node that is known to be ``name``; of two answers to one question the first stands.

        Raises:
            ProtocolError: not an answer that is due; the node counts as silent.
            UpdateRejected: a masked vector of a wrong size.
            PolicyRefusal: the node is not on the roster.
        """
        self._collecting().receive(name, m.decode(data), body)

    def close(self) -> Outbox:
        """End the stage; the next messages, none when the sum is open.

        Raises:
            RunFailed: too few answers, or the sum would be wrong; nothing more is asked of anybody.
            PlanError: no parameters are safe for the nodes that are there.
        """
        state = self._collecting()
        try:
            self.state, outbox = state.close(self._core) if isinstance(state, Unmasking) else state.close()
        except FedscaleError as error:
            self.state = Aborted(error)
            raise
        return outbox

    @property
    def outcome(self) -> Outcome:
        """The sum.

        Raises:
            RunFailed: it is not open.
        """
        if not isinstance(self.state, Done):
            raise RunFailed("the sum is not open", where=type(self.state).__name__)
        return self.state.outcome

    def _collecting(self) -> Collecting:
        """The stage that takes answers.

        Raises:
            ProtocolError: the round is over.
        """
        if isinstance(self.state, Done | Aborted):
            raise ProtocolError("the round is over", where=type(self.state).__name__)
        return self.state
