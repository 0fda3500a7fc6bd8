"""A node's side of a round: one class a state, messages in, replies out.

A node believes nothing that the server says about itself: graph, threshold, session and range come from the terms that
the node holds, the roster that it pins and the keys that it verifies. The first message that does not fit ends the round
for this node with a typed reason, in ``Aborted``. It gives at most one masked vector for a round and answers at most one
unmask request; the reply's ``mark`` says what must be on disk before either leaves.

Sources: Bonawitz et al., CCS 2017, figure 4; Bell et al., CCS 2020, algorithm 2.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import FedscaleError, PolicyRefusal, ProtocolError
from fedscale.ring import WORD, Pieces, Words
from fedscale.secagg import messages as m
from fedscale.secagg import prg, shamir
from fedscale.secagg.keys import Pair, SessionKeys, encapsulate, pair, public_of, seal, unseal, verify
from fedscale.secagg.parameters import Profile
from fedscale.secagg.prg import Core, Mask
from fedscale.secagg.session import Session, advance, check_length, check_range, consent_text
from fedscale.secagg.shamir import Entropy
from fedscale.secagg.terms import Mark, Policy, Roster, Terms
from fedscale.secagg.transcript import DIGEST, digest

Out: TypeAlias = Callable[[bytes | memoryview], object]

OTHERS = "a node that is there does not help to open its own pair masks"


@dataclass(frozen=True, slots=True)
class Site:
    """What a node brings along.

    Args:
        name: its name on the roster.
        key: its identity key.
        roster: the pinned roster.
        policy: what its owner allows.
        entropy: source of random bytes.
        core: what computes masks.
    """

    name: str
    key: Ed25519PrivateKey = field(repr=False)
    roster: Roster = field(repr=False)
    policy: Policy = field(default_factory=Policy)
    entropy: Entropy = field(default=secrets.token_bytes, repr=False)
    core: Core = Core.GCM


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to the server.

    Args:
        message: the bytes.
        body: the masked vector, for the one message that has one.
        mark: to be on disk before anything is sent.
    """

    message: bytes
    body: bytes | Words | None = field(default=None, repr=False)
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A node in a session.

    Args:
        site: what it brought along.
        mark: what it remembers.
        seat: its own seat.
        session: what everybody knows.
    """

    site: Site
    mark: Mark
    seat: int
    session: Session = field(repr=False)

    @property
    def holders(self) -> tuple[int, ...]:
        """Who holds shares of this node's secrets."""
        return self.session.graph.holders(self.seat)

    def check(self, session: bytes, present: frozenset[int], among: frozenset[int]) -> None:
        """Check what every message after the directory says.

        Raises:
            ProtocolError: another session, somebody who was not there before, or not this node.
            PolicyRefusal: too few holders of its shares are left.
        """
        self.session.check_id(session)
        if not present <= among:
            raise ProtocolError("a node is named that was not there before")
        if self.seat not in present:
            raise ProtocolError("the server declares this very node dropped", why=OTHERS)
        left = len(present.intersection(self.holders))
        if left < self.session.threshold:
            raise PolicyRefusal("too few neighbours are left", why=f"{left} of the {self.session.threshold} that it takes to open a sum")

    def check_survivors(self, survivors: m.Survivors, shared: frozenset[int]) -> None:
        """Decide whether the sum over these nodes may be opened.

        Raises:
            ProtocolError: not a part of those who shared, or without this node.
            PolicyRefusal: fewer than the site's owner or the threshold asks for.
        """
        self.check(survivors.session, survivors.present, shared)
        session = self.session
        self.site.policy.admit_cohort(session.names(survivors.present), len(session.members), session.terms, self.mark)


# --------------------------------------------------------------------------------------------------------------- states


@dataclass(frozen=True, slots=True)
class AdvertiseKeys:
    """Waits for the server to open the round."""

    site: Site
    terms: Terms
    mark: Mark

    def accept(self, message: m.Message) -> tuple[State, Reply]:
        """Compare the terms, make session keys and sign them."""
        offered = m.expect(message, m.Open).terms
        for name in Terms.__dataclass_fields__:
            if getattr(offered, name) != getattr(self.terms, name):
                raise PolicyRefusal(f"the server's terms differ in '{name}'", why="a node takes part under the terms it knows, or not at all")
        if self.terms.roster != self.site.roster.digest:
            raise PolicyRefusal("the terms speak of another roster than the one pinned here")
        self.site.policy.admit(self.terms, self.mark)
        member = self.site.roster.index(self.site.name)
        if self.site.roster.members[member].key != public_of(self.site.key):
            raise PolicyRefusal("the roster lists another identity key for this node")
        keys = SessionKeys.new(self.site.entropy)
        unsigned = m.Keys(member, *keys.public, b"")
        own = replace(unsigned, signature=self.site.key.sign(unsigned.signed(self.terms.digest)))
        return AgreeKeys(self.site, self.terms, self.mark, keys, own), Reply(m.encode(own))


@dataclass(frozen=True, slots=True)
class AgreeKeys:
    """Waits for the directory of all keys."""

    site: Site
    terms: Terms
    mark: Mark
    keys: SessionKeys
    own: m.Keys

    def accept(self, message: m.Message) -> tuple[State, Reply]:
        """Compute session, graph and threshold; encapsulate for the neighbours with higher seats."""
        place = self._place(m.expect(message, m.Directory))
        session, curves, kems = place.session, {}, {}
        for seat in session.graph.neighbours(place.seat):
            keys = session.verified(seat)
            curves[seat] = self.keys.exchange(keys.curve, session.who(seat))
            if seat > place.seat:
                kems[seat] = encapsulate(keys.kem, session.who(seat))
        items = tuple(m.Item(seat, text) for seat, (_, text) in kems.items())
        return ShareKeys(place, self.keys, curves, kems), Reply(m.encode(m.Agreement(session.id, items)))

    def _place(self, directory: m.Directory) -> Place:
        """This node's place in the session.

        Raises:
            PolicyRefusal: too few nodes.
            ProtocolError: strangers are listed, or other keys for this node than its own.
        """
        session = Session.of(self.terms, self.site.roster, directory)
        seat = session.members.index(self.own.member) if self.own.member in directory.members else -1
        if seat < 0 or directory.keys(seat, self.own.member) != self.own:
            raise ProtocolError("the directory does not list this node's own keys")
        everybody = session.names(range(len(session.members)))
        self.site.policy.admit_cohort(everybody, len(everybody), self.terms, replace(self.mark, cohort=()))
        return Place(self.site, self.mark, seat, session)


@dataclass(frozen=True, slots=True)
class ShareKeys:
    """Waits for the neighbours' ciphertexts."""

    place: Place
    keys: SessionKeys
    curves: Mapping[int, bytes] = field(repr=False)
    kems: Mapping[int, tuple[bytes, bytes]] = field(repr=False)

    def accept(self, message: m.Message) -> tuple[State, Reply]:
        """Derive the keys of each pair; share this node's secrets among its neighbours."""
        agreed, place = m.expect(message, m.Agreed), self.place
        session, seat, entropy = place.session, place.seat, place.site.entropy
        place.check(agreed.session, agreed.present, frozenset(range(len(session.members))))
        transcript = advance(session.id, "agreed", agreed.present)
        pairs = self._pairs(agreed, transcript)
        holders = [holder for holder in place.holders if holder in agreed.present]
        values = {use: shamir.draw(entropy) for use in ("self", "pair")}
        split = (shamir.split(value, session.threshold, [holder + 1 for holder in holders], entropy) for value in values.values())
        shares = dict(zip(holders, zip(*split, strict=True), strict=True))
        dealt = m.Shares(
            session.id,
            session.escrow(seat, values["pair"], (pairs[other].mask for other in sorted(pairs))),
            self_secret=session.commitment("self secret", seat, seat, values["self"]),
            pair_secret=session.commitment("pair secret", seat, seat, values["pair"]),
            parcels=tuple(_parcel(place, holder, pairs.get(holder), shares[holder]) for holder in holders),
        )
        own = {seat: shares[seat]} if seat in shares else {}
        return CollectShares(place, agreed.present, transcript, pairs, values["self"], own), Reply(m.encode(dealt))

    def _pairs(self, agreed: m.Agreed, transcript: bytes) -> dict[int, Pair]:
        """The keys that this node has with each neighbour that is still there, ascending."""
        session, own, texts = self.place.session, self.place.seat, m.by_seat(agreed.items)
        due = [seat for seat in session.graph.neighbours(own) if seat in agreed.present]
        if set(texts) != {seat for seat in due if seat < own}:
            raise ProtocolError("the ciphertexts are not those of this node's neighbours")
        kems = dict(self.kems) | {seat: (self.keys.decapsulate(text, session.who(seat)), text) for seat, text in texts.items()}
        return {seat: pair(self.curves[seat], *kems[seat], transcript, session.context(min(seat, own), max(seat, own))) for seat in due}


def _parcel(place: Place, holder: int, keys: Pair | None, shares: tuple[bytes, ...]) -> m.Parcel:
    """The shares for one holder; for the node itself only their hashes."""
    session, dealer, box, agreed = place.session, place.seat, bytes(m.BOX), bytes(DIGEST)
    if keys is not None:
        box = seal(keys.up if dealer < holder else keys.down, b"".join(shares), session.box_context(dealer, holder))
        agreed = session.pair_commitment(dealer, holder, keys.mask)
    hashes = (session.commitment(f"{use} share", dealer, holder, share) for use, share in zip(("self", "pair"), shares, strict=True))
    return m.Parcel(holder, box, agreed, *hashes)


@dataclass(frozen=True, slots=True)
class CollectShares:
    """Waits for the neighbours' sealed shares."""

    place: Place
    agreed: frozenset[int]
    transcript: bytes
    pairs: Mapping[int, Pair]
    secret: bytes = field(repr=False)
    own: Mapping[int, tuple[bytes, ...]] = field(repr=False)

    def accept(self, message: m.Message) -> tuple[State, None]:
        """Open the boxes. One that does not open is noted: its sender's shares are lost, everybody else's are not."""
        boxes, place = m.expect(message, m.Boxes), self.place
        place.check(boxes.session, boxes.present, self.agreed)
        sealed, session = m.by_seat(boxes.items), place.session
        if sealed.keys() != self.pairs.keys() & boxes.present:
            raise ProtocolError("the boxes are not those of this node's neighbours")
        shares, complaints = dict(self.own), []
        for seat, box in sealed.items():
            key = self.pairs[seat].up if seat < place.seat else self.pairs[seat].down
            try:
                text = unseal(key, box, session.box_context(seat, place.seat), f"the box of {session.who(seat)}")
            except ProtocolError as error:
                complaints.append(str(error))
                continue
            shares[seat] = (text[: shamir.SIZE], text[shamir.SIZE :])
        masks = [Mask(self.pairs[seat].mask, negative=seat < place.seat) for seat in sealed]
        masks.append(Mask(session.self_mask(place.seat, self.secret)))
        transcript = advance(self.transcript, "shared", boxes.present)
        return MaskedInput(place, boxes.present, transcript, tuple(masks), shares, tuple(complaints)), None


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """Waits for this node's own vector; the server has nothing to say here.

    Args:
        place: the node in its session.
        shared: who shared secrets.
        transcript: hash of everything so far.
        masks: what hides the vector.
        shares: of each dealer, the share of its self mask and of its pair masks.
        complaints: boxes that did not open.
    """

    place: Place
    shared: frozenset[int]
    transcript: bytes
    masks: tuple[Mask, ...]
    shares: Mapping[int, tuple[bytes, ...]] = field(repr=False)
    complaints: tuple[str, ...] = ()

    def accept(self, message: m.Message) -> tuple[State, None]:
        """Nothing may come now.

        Raises:
            ProtocolError: always.
        """
        raise ProtocolError(f"a message '{type(message).__name__}' out of turn", why="the node's own vector is due")

    def mask(self, words: Pieces, out: Out | None = None) -> tuple[State, Reply]:
        """Hide the vector: each tile is checked, masked and handed on while it is in the cache.

        Raises:
            UpdateRejected: wrong length or dtype, or a word beyond the limit.
            PolicyRefusal: it leaves more words untouched than the site allows.
        """
        site, terms = self.place.site, self.place.session.terms
        check_length(words, terms)
        longest, touched, least = min(prg.TILE, terms.length), 0, site.policy.least_touched
        result, veil = np.empty(longest if out else terms.length, WORD), prg.Veil(self.masks, site.core, longest)
        wide = terms.bits == WORD.itemsize * 8
        for start in range(0, terms.length, longest):
            tile = words[start : start + longest]
            check_range(tile, terms)
            touched += int(np.count_nonzero(tile)) if least else 0
            target = result[: len(tile)] if out else result[start : start + longest]
            veil.lay(tile, target)
            if out:
                out(target.data if wide else prg.pack(target))
        if touched < least * terms.length:
            raise PolicyRefusal("a sparse vector is not sent", why="the words that it touches may tell whose data it is of")
        mark = self.place.mark.masked(terms)
        waits = Consistency if terms.profile is Profile.MALICIOUS else Unmask
        state = waits(replace(self.place, mark=mark), self.shared, self.transcript, self.shares)
        body = None if out else result if wide else prg.pack(result)
        return state, Reply(m.encode(m.Masked(self.place.session.id)), body, mark)


@dataclass(frozen=True, slots=True)
class Consistency:
    """Waits for the set of survivors, to sign it."""

    place: Place
    shared: frozenset[int]
    transcript: bytes
    shares: Mapping[int, tuple[bytes, ...]] = field(repr=False)

    def accept(self, message: m.Message) -> tuple[State, Reply]:
        """Sign the survivors, with everything before, once and for all."""
        survivors, place = m.expect(message, m.Survivors), self.place
        place.check_survivors(survivors, self.shared)
        transcript = advance(self.transcript, "survivors", survivors.present)
        consent = m.Consent(place.session.id, place.site.key.sign(consent_text(transcript, place.seat)))
        return Unmask(place, self.shared, transcript, self.shares, survivors.present), Reply(m.encode(consent))


@dataclass(frozen=True, slots=True)
class Unmask:
    """Waits for leave to open shares: the neighbours' signatures, or under a curious server the survivors themselves.

    Args:
        place: the node in its session.
        shared: who shared secrets.
        transcript: hash of everything so far.
        shares: of each dealer, the share of its self mask and of its pair masks.
        signed: the survivors that this node signed; None where nothing is signed.
    """

    place: Place
    shared: frozenset[int]
    transcript: bytes
    shares: Mapping[int, tuple[bytes, ...]] = field(repr=False)
    signed: frozenset[int] | None = None

    def accept(self, message: m.Message) -> tuple[State, Reply]:
        """Open, of each dealer, the one share that the sum needs."""
        if self.signed is None:
            survivors = m.expect(message, m.Survivors)
            self.place.check_survivors(survivors, self.shared)
            present = survivors.present
        else:
            present = self.signed
            self._check_consents(m.expect(message, m.Consents), present)
        session, dealers = self.place.session, sorted(self.shares.keys() & self.shared)
        self_shares = tuple(m.Item(seat, self.shares[seat][0]) for seat in dealers if seat in present)
        pair_shares = tuple(m.Item(seat, self.shares[seat][1]) for seat in dealers if seat not in present)
        answer = m.encode(m.Opened(session.id, self_shares, pair_shares))
        mark = replace(self.place.mark, cohort=session.names(present), request=request_digest(m.encode(message)), answer=answer)
        return Done(mark), Reply(answer, mark=mark)

    def _check_consents(self, consents: m.Consents, present: frozenset[int]) -> None:
        """Check that a threshold of holders of this node's shares were told of the same survivors.

        Raises:
            ProtocolError: a signature is wrong, or by somebody else.
            PolicyRefusal: too few.
        """
        session, signers = self.place.session, m.by_seat(consents.items)
        session.check_id(consents.session)
        if not present.intersection(self.place.holders).issuperset(signers):
            raise ProtocolError("a signature of the survivors is by a node that is no surviving neighbour")
        if len(signers) < session.threshold:
            raise PolicyRefusal(f"{len(signers)} signatures of the survivors are too few", why=f"the threshold is {session.threshold}")
        for seat, signature in signers.items():
            key = session.roster.members[session.members[seat]].key
            verify(key, signature, consent_text(self.transcript, seat), f"the survivors by {session.who(seat)}")


@dataclass(frozen=True, slots=True)
class Done:
    """The round is over for this node; the one answer that it gave may be asked for again."""

    mark: Mark

    def accept(self, message: m.Message) -> tuple[State, None]:
        """Nothing new is answered.

        Raises:
            ProtocolError: always.
        """
        raise ProtocolError(f"a message '{type(message).__name__}' after the one unmask answer of round {self.mark.round}")


@dataclass(frozen=True, slots=True)
class Aborted:
    """The node takes no further part in the round."""

    reason: FedscaleError

    def accept(self, message: m.Message) -> tuple[State, None]:
        """Nothing is answered any more.

        Raises:
            ProtocolError: always, with the first reason.
        """
        raise ProtocolError(f"a message '{type(message).__name__}' after this node left the round", why=str(self.reason))


State: TypeAlias = AdvertiseKeys | AgreeKeys | ShareKeys | CollectShares | MaskedInput | Consistency | Unmask | Done | Aborted


# ---------------------------------------------------------------------------------------------------------- the machine


def request_digest(data: bytes) -> bytes:
    """What tells one request from another."""
    return digest("request", data)


class Node:
    """Drives the states: the same request twice gives the same reply, the first refusal ends the round.

    Args:
        site: what the node brings along.
        terms: what it agreed to.
        mark: what it remembers of the run; of a node that restarts, what it last had on disk.
    """

    def __init__(self, site: Site, terms: Terms, mark: Mark | None = None) -> None:
        mark = mark or Mark(terms.run)
        self.state: State = AdvertiseKeys(site, terms, mark)
        self._replies: dict[bytes, Reply | None] = {mark.request: Reply(mark.answer, mark=mark)} if mark.request else {}

    @property
    def refusal(self) -> FedscaleError | None:
        """Why the node left the round; None while it has not."""
        return self.state.reason if isinstance(self.state, Aborted) else None

    def handle(self, data: bytes) -> Reply | None:
        """Answer the server's message; None when there is nothing to say yet.

        Raises:
            ProtocolError: it is not a message that may come now.
            PolicyRefusal: the site does not allow what it asks.
            PlanError: no parameters are safe for the nodes that are there.
        """
        request = request_digest(data)
        if request not in self._replies:
            try:
                self.state, self._replies[request] = self.state.accept(m.decode(data))
            except FedscaleError as error:
                self._abort(error)
                raise
        return self._replies[request]

    def submit(self, words: Pieces, out: Out | None = None) -> Reply:
        """Mask this node's vector of shape ``(terms.length,)``, in a copy, once the shares are there.

        Args:
            words: the vector.
            out: takes the masked bytes, piece by piece, instead of the reply's body; what it was given before an error is worth nothing.

        Raises:
            ProtocolError: it is not time yet, or a vector was given before.
            UpdateRejected: the vector does not fit the terms.
            PolicyRefusal: the site does not allow it to be sent.
        """
        if not isinstance(self.state, MaskedInput):
            raise ProtocolError("this node's vector is not due", where=type(self.state).__name__)
        try:
            self.state, reply = self.state.mask(words, out)
        except FedscaleError as error:
            self._abort(error)
            raise
        return reply

    def _abort(self, error: FedscaleError) -> None:
        """Forget all secrets; the first reason stays, and what was answered stays answered."""
        if not isinstance(self.state, Aborted | Done):
            self.state = Aborted(error)
