"""The messages of a round, in the order in which they are sent, and their bytes.

=============  =================  =========================================================================
direction      message            content
=============  =================  =========================================================================
to the node    ``Open``           the terms, which the node compares with its own
to the server  ``Keys``           session keys, signed
to the node    ``Directory``      all session keys; their hash is the session
to the server  ``Agreement``      a ML-KEM ciphertext for each neighbour with a higher seat
to the node    ``Agreed``         the ciphertexts for this node, and who is still there
to the server  ``Shares``         for each neighbour a sealed pair of shares; the sealed mask keys
to the node    ``Boxes``          the sealed shares for this node, and who is still there
to the server  ``Masked``         the masked vector, beside the message
to the node    ``Survivors``      whose vectors arrived
to the server  ``Consent``        a signature of that set (malicious profile)
to the node    ``Consents``       the neighbours' signatures (malicious profile)
to the server  ``Opened``         of each neighbour one share: of its self mask, or of the key to its pair masks
=============  =================  =========================================================================

A *seat* is a node's place in the directory. Every message after it names the session, which each node computes itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias, TypeVar

from fedscale.errors import ProtocolError
from fedscale.secagg.codec import Blob, Fixed, Number, Reader, Record, Rows, Seats, record
from fedscale.secagg.keys import CURVE_KEY, KEM_KEY, KEM_TEXT, KEY, SIGNATURE, TAG
from fedscale.secagg.shamir import SIZE
from fedscale.secagg.terms import TERMS, Terms
from fedscale.secagg.transcript import DIGEST, digest, frame

MAGIC = b"FSA1"
MOST_BYTES = 1 << 31
ESCROW_BYTES = 1 << 22
BOX = 2 * SIZE + TAG


@dataclass(frozen=True, slots=True)
class Open:
    """The server opens a round."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class Keys:
    """A node's session keys; ``member`` is its index in the roster."""

    member: int
    curve: bytes
    kem: bytes
    signature: bytes

    def signed(self, terms: bytes) -> bytes:
        """What the signature covers, given the hash of the terms."""
        return frame("keys", terms, self.member, self.curve, self.kem)


@dataclass(frozen=True, slots=True)
class Directory:
    """All session keys by ascending member, column by column: a node looks at its neighbours' alone."""

    members: frozenset[int]
    curves: bytes
    kems: bytes
    signatures: bytes

    def __post_init__(self) -> None:
        """Refuse columns of different length.

        Raises:
            ProtocolError: a column does not have one value for each member.
        """
        count = len(self.members)
        if (len(self.curves), len(self.kems), len(self.signatures)) != (count * CURVE_KEY, count * KEM_KEY, count * SIGNATURE):
            raise ProtocolError("the columns of a directory differ in length")

    @classmethod
    def of(cls, entries: Iterable[Keys]) -> Directory:
        """The directory of these keys."""
        rows = sorted(entries, key=lambda keys: keys.member)
        columns = (b"".join(getattr(keys, name) for keys in rows) for name in ("curve", "kem", "signature"))
        return cls(frozenset(keys.member for keys in rows), *columns)

    @property
    def seats(self) -> tuple[int, ...]:
        """The members by seat."""
        return tuple(sorted(self.members))

    def keys(self, seat: int, member: int) -> Keys:
        """The keys at a seat, which is that of ``member``."""
        columns = ((self.curves, CURVE_KEY), (self.kems, KEM_KEY), (self.signatures, SIGNATURE))
        return Keys(member, *(column[seat * size : (seat + 1) * size] for column, size in columns))

    def session(self, terms: bytes) -> bytes:
        """The hash of the terms and all signed keys: what this round is called from now on."""
        return digest("session", terms, DIRECTORY.write(self))


@dataclass(frozen=True, slots=True)
class Item:
    """Bytes from one seat for another; ``seat`` is the far end."""

    seat: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Ciphertexts for the neighbours with higher seats."""

    session: bytes
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Agreed:
    """Who sent an agreement, and the ciphertexts for this node."""

    session: bytes
    present: frozenset[int]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Parcel:
    """For one holder: the sealed shares, and hashes by which the server tells right from wrong.

    Args:
        seat: the holder.
        box: the sealed shares; zeros for the node itself.
        pair: hash of the mask key of the pair; zeros for the node itself.
        self_share: hash of the share of the self mask.
        pair_share: hash of the share of the key to the pair masks.
    """

    seat: int
    box: bytes = field(repr=False)
    pair: bytes
    self_share: bytes
    pair_share: bytes


@dataclass(frozen=True, slots=True)
class Shares:
    """What neighbours need to stand in for a node that drops out.

    Args:
        session: the session.
        escrow: the mask keys of all pairs, ascending by seat, sealed under a key that is shared among the holders.
        self_secret: hash of the secret behind the self mask.
        pair_secret: hash of the secret behind the escrow.
        parcels: one for each holder, ascending.
    """

    session: bytes
    escrow: bytes = field(repr=False)
    self_secret: bytes
    pair_secret: bytes
    parcels: tuple[Parcel, ...]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Who shared, and the boxes for this node."""

    session: bytes
    present: frozenset[int]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked vector lies beside this message."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Survivors:
    """Whose vectors arrived; all others who shared are dropped."""

    session: bytes
    present: frozenset[int]


@dataclass(frozen=True, slots=True)
class Consent:
    """A node's signature of the survivors and of everything before."""

    session: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Consents:
    """The signatures of a node's neighbours."""

    session: bytes
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """Shares of the self masks of survivors and of the pair secrets of the dropped; never both of one node."""

    session: bytes
    self_shares: tuple[Item, ...]
    pair_shares: tuple[Item, ...]


Message: TypeAlias = Open | Keys | Directory | Agreement | Agreed | Shares | Boxes | Masked | Survivors | Consent | Consents | Opened
Kind = TypeVar("Kind", bound=Message)

_SESSION, _SEATS = Fixed(DIGEST), Seats()


def _items(size: int) -> Rows:
    return Rows(Item, data=size)


_KEYS = record(Keys, member=Number(), curve=Fixed(CURVE_KEY), kem=Fixed(KEM_KEY), signature=Fixed(SIGNATURE))
_COLUMN = Blob(MOST_BYTES)
DIRECTORY = record(Directory, members=_SEATS, curves=_COLUMN, kems=_COLUMN, signatures=_COLUMN)
_PARCELS = Rows(Parcel, box=BOX, pair=DIGEST, self_share=DIGEST, pair_share=DIGEST)
_SHARES = record(Shares, session=_SESSION, escrow=Blob(ESCROW_BYTES), self_secret=Fixed(DIGEST), pair_secret=Fixed(DIGEST), parcels=_PARCELS)

FORMATS: dict[type[Message], Record] = {
    Open: record(Open, terms=TERMS),
    Keys: _KEYS,
    Directory: DIRECTORY,
    Agreement: record(Agreement, session=_SESSION, items=_items(KEM_TEXT)),
    Agreed: record(Agreed, session=_SESSION, present=_SEATS, items=_items(KEM_TEXT)),
    Shares: _SHARES,
    Boxes: record(Boxes, session=_SESSION, present=_SEATS, items=_items(BOX)),
    Masked: record(Masked, session=_SESSION),
    Survivors: record(Survivors, session=_SESSION, present=_SEATS),
    Consent: record(Consent, session=_SESSION, signature=Fixed(SIGNATURE)),
    Consents: record(Consents, session=_SESSION, items=_items(SIGNATURE)),
    Opened: record(Opened, session=_SESSION, self_shares=_items(KEY), pair_shares=_items(KEY)),
}
_TAGS = {kind: bytes([tag]) for tag, kind in enumerate(FORMATS, 1)}
_KINDS = {tag: kind for kind, tag in _TAGS.items()}


def encode(message: Message) -> bytes:
    """The canonical bytes of a message."""
    return MAGIC + _TAGS[type(message)] + FORMATS[type(message)].write(message)


def decode(data: bytes) -> Message:
    """The message that ``data`` is.

    Raises:
        ProtocolError: it is none, is cut short, has something behind it or a length beyond its bound.
    """
    if len(data) > MOST_BYTES:
        raise ProtocolError("a message is too long", why=f"{len(data)} bytes are above {MOST_BYTES}")
    reader = Reader(data)
    kind = _KINDS.get(reader.take(len(MAGIC) + 1).removeprefix(MAGIC))
    if kind is None:
        raise ProtocolError("not a message of this version of secure aggregation")
    message: Message = FORMATS[kind].read(reader)
    reader.end()
    return message


def expect(message: Message, kind: type[Kind]) -> Kind:
    """The message, if it is of the kind that is due.

    Raises:
        ProtocolError: it is another.
    """
    if not isinstance(message, kind):
        raise ProtocolError(f"a message '{type(message).__name__}' out of turn", why=f"'{kind.__name__}' is due")
    return message


def by_seat(items: tuple[Item, ...]) -> dict[int, bytes]:
    """Items by seat.

    Raises:
        ProtocolError: not strictly ascending, as one canonical form demands.
    """
    seats = [item.seat for item in items]
    if any(before >= after for before, after in pairwise(seats)):
        raise ProtocolError("the items of a message are not in ascending order")
    return {item.seat: item.data for item in items}
