"""Who is who: nodes prove their identity keys, and the federation's authority signs who is in a cohort.

The roster's authority is an Ed25519 key that follows from the certificate authority's key, which vouches for it; so a node
that has joined needs nothing new to check a roster but the authority's certificate that it pinned then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedscale.errors import PolicyRefusal, ProtocolError
from fedscale.secagg.keys import KEY, SIGNATURE, public_of, verify
from fedscale.secagg.terms import Roster
from fedscale.secagg.transcript import frame

ECDSA = ec.ECDSA(hashes.SHA256())
INFO = b"fedscale/secagg/v1 roster authority"


@dataclass(frozen=True, slots=True)
class RosterAuthority:
    """Signs rosters.

    Args:
        key: the Ed25519 key.
        statement: its public key and the certificate authority's signature of it.
    """

    key: Ed25519PrivateKey = field(repr=False)
    statement: bytes

    @classmethod
    def of(cls, authority: ec.EllipticCurvePrivateKey) -> RosterAuthority:
        """The one of a certificate authority, always with the same key."""
        secret = authority.private_numbers().private_value.to_bytes(-(-authority.key_size // 8))
        key = Ed25519PrivateKey.from_private_bytes(HKDF(hashes.SHA256(), KEY, None, INFO).derive(secret))
        return cls(key, public_of(key) + authority.sign(_vouched(public_of(key)), ECDSA))

    def sign(self, roster: Roster) -> bytes:
        """A roster for ``opened``."""
        return roster.sign(self.key)


def opened(roster: bytes, statement: bytes, authority: object) -> Roster:
    """A roster that the holder of a certificate authority's public key ``authority`` stands behind.

    Raises:
        ProtocolError: malformed, or signed by somebody else.
    """
    public = statement[:KEY]
    try:
        if not isinstance(authority, ec.EllipticCurvePublicKey):
            raise ProtocolError("the federation's authority has a key of another kind")
        authority.verify(statement[KEY:], _vouched(public), ECDSA)
    except InvalidSignature:
        raise ProtocolError("the authority of the roster is not that of this federation") from None
    return Roster.open(roster, public)


def _vouched(public: bytes) -> bytes:
    return frame("roster authority", public)


def claim(key: Ed25519PrivateKey, name: str) -> bytes:
    """What proves that a node holds an identity key: the public key and a signature of the node's name."""
    return public_of(key) + key.sign(frame("identity", name.encode()))


def claimed(name: str, proof: bytes) -> str:
    """The identity key, in hex, that the node of that name has proved to hold.

    Raises:
        ProtocolError: it has not.
    """
    if len(proof) != KEY + SIGNATURE:
        raise ProtocolError(f"the identity of node '{name}' is malformed")
    verify(proof[:KEY], proof[KEY:], frame("identity", name.encode()), f"the identity of node '{name}'")
    return proof[:KEY].hex()


def check_pins(roster: Roster, pins: dict[str, str]) -> dict[str, str]:
    """The identity keys of a roster that were not known before, by name, in hex.

    Args:
        roster: the roster.
        pins: the keys that were seen before.

    Raises:
        PolicyRefusal: a node is listed with another key than before.
    """
    keys = {member.name: member.key.hex() for member in roster.members}
    if changed := [name for name in keys if pins.get(name, keys[name]) != keys[name]]:
        raise PolicyRefusal(
            f"the roster lists another identity key for node '{changed[0]}' than before",
            why="it was made anew, or somebody stands in for it",
            hint="ask that site; the owner of this one can delete its line from secagg/members.toml",
        )
    return {name: key for name, key in keys.items() if name not in pins}
