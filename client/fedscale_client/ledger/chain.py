"""The chain: each entry holds the hash of the one before and is signed by the site.

An entry that is edited, taken out, put elsewhere or added by somebody without the key breaks the chain. An end that was
cut off does not; for that there is the head (``fedscale_client.ledger.head``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedscale_client.ledger.claims import canonical
from fedscale_client.ledger.lines import Kind, Line, Said

CONTEXT = b"fedscale/ledger/v1\0"


@dataclass(frozen=True, slots=True)
class Signer:
    """The identity key of the site, an Ed25519 key."""

    key: Ed25519PrivateKey

    @property
    def name(self) -> str:
        """The public key in hex."""
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    @property
    def origin(self) -> str:
        """What the first entry follows: no chain fits another key."""
        return hashlib.sha256(CONTEXT + bytes.fromhex(self.name)).hexdigest()

    def sign(self, digest: str) -> str:
        """The signature of a hash, both in hex."""
        return self.key.sign(CONTEXT + bytes.fromhex(digest)).hex()

    def signed(self, digest: str, signature: str) -> bool:
        """Whether this key made a signature."""
        try:
            self.key.public_key().verify(bytes.fromhex(signature), CONTEXT + bytes.fromhex(digest))
        except (InvalidSignature, ValueError):
            return False
        return True


def digest_of(entry: Said) -> str:
    """The hash of everything an entry says, in hex."""
    said = [entry.seq, entry.kind, entry.reservation, entry.facts, entry.at, entry.previous]
    return hashlib.sha256(CONTEXT + canonical(said).encode()).hexdigest()


def sealed(signer: Signer, last: tuple[int, str], kind: Kind, reservation: int, facts: Mapping[str, Any], at: str) -> Line:
    """The entry that follows ``last``, the number and hash of the entry before; reservation 0 stands for the entry itself."""
    seq = last[0] + 1
    entry = Line(seq, str(kind), reservation or seq, canonical(facts), at, last[1], "", "")
    entry.digest = digest_of(entry)
    entry.signature = signer.sign(entry.digest)
    return entry


def flaw(signer: Signer, last: tuple[int, str], entry: Said) -> str:
    """What is wrong with an entry that should follow ``last``; empty when nothing is."""
    if entry.seq != last[0] + 1:
        return f"entry {last[0] + 1} is missing"
    if entry.digest != digest_of(entry):
        return f"entry {entry.seq} was edited"
    if entry.previous != last[1]:
        return f"entry {entry.seq} does not follow the one before it"
    if not signer.signed(entry.digest, entry.signature):
        return f"entry {entry.seq} was not signed by this site"
    return ""
