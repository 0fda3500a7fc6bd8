"""Keys: identity signatures, session keys that resist quantum computers too, and what is derived from them.

Two nodes agree on a root from X25519 and ML-KEM-768 together: it stays secret as long as one of the two does. The lower
seat encapsulates. From the root come three keys, each used once: one to seal a message in each direction and the mask of
the pair. Only the mask key of a node that dropped out is ever given to the server, never the root.
Sources: RFC 8032 (Ed25519), RFC 7748 (X25519), FIPS 203 (ML-KEM), RFC 5869 (HKDF), SP 800-38D (GCM).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedscale.errors import ProtocolError
from fedscale.secagg.shamir import Entropy
from fedscale.secagg.transcript import digest, frame

CURVE_KEY, KEM_KEY, KEM_TEXT, KEM_SEED = 32, 1184, 1088, 64
SIGNATURE, KEY, TAG = 64, 32, 16
SIGNATURES = 4096
# Every sealing key seals exactly one message.
NONCE = bytes(12)
# All points of small order on the curve and its twist, also where they are not reduced (RFC 7748 section 7, and Bernstein's list).
LOW_ORDER = {
    *(0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18),
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
}


# ----------------------------------------------------------------------------------------------------------- signatures


def verify(public: bytes, signature: bytes, message: bytes, what: str) -> None:
    """Check an Ed25519 signature.

    Raises:
        ProtocolError: it is not by the holder of ``public``; ``what`` says what was signed.
    """
    try:
        found_right(public, signature, message)
    except (InvalidSignature, ValueError):
        raise ProtocolError(f"the signature of {what} is wrong") from None


@lru_cache(maxsize=SIGNATURES)
def found_right(public: bytes, signature: bytes, message: bytes) -> None:
    """Nothing, for a signature that is right; remembered, for the nodes of a simulation all hear the same ones.

    Raises:
        InvalidSignature: it is wrong.
        ValueError: the key is malformed.
    """
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)


def public_of(key: Ed25519PrivateKey) -> bytes:
    """The 32-byte public key of an identity."""
    return key.public_key().public_bytes_raw()


# ------------------------------------------------------------------------------------------------------------ agreement


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The private keys of one node in one session."""

    curve: X25519PrivateKey = field(repr=False)
    kem: MLKEM768PrivateKey = field(repr=False)

    @classmethod
    def new(cls, entropy: Entropy) -> SessionKeys:
        """Fresh keys."""
        return cls(X25519PrivateKey.from_private_bytes(entropy(CURVE_KEY)), MLKEM768PrivateKey.from_seed_bytes(entropy(KEM_SEED)))

    @property
    def public(self) -> tuple[bytes, bytes]:
        """The X25519 and the ML-KEM-768 public key."""
        return self.curve.public_key().public_bytes_raw(), self.kem.public_key().public_bytes_raw()

    def exchange(self, peer: bytes, who: str) -> bytes:
        """The X25519 secret shared with a peer.

        Raises:
            ProtocolError: the peer's key has low order, so the secret would be known to everybody.
        """
        try:
            return self.curve.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise ProtocolError(f"{who} has a key of low order", why="a secret shared with it would be known to everybody") from None

    def decapsulate(self, text: bytes, who: str) -> bytes:
        """The secret that a peer encapsulated.

        Raises:
            ProtocolError: not a ciphertext of ML-KEM-768.
        """
        try:
            return self.kem.decapsulate(text)
        except ValueError:
            raise ProtocolError(f"what {who} encapsulated cannot be read") from None


def encapsulate(peer: bytes, who: str) -> tuple[bytes, bytes]:
    """A fresh secret and its ciphertext for the holder of an ML-KEM-768 key.

    Raises:
        ProtocolError: the key is malformed.
    """
    try:
        return MLKEM768PublicKey.from_public_bytes(peer).encapsulate()
    except ValueError:
        raise ProtocolError(f"{who} has a malformed ML-KEM key") from None


def check_public(curve: bytes, kem: bytes, who: str) -> None:
    """Refuse public keys with which nobody can agree on a secret.

    Raises:
        ProtocolError: of low order, or malformed.
    """
    try:
        MLKEM768PublicKey.from_public_bytes(kem)
    except ValueError:
        raise ProtocolError(f"{who} has a malformed ML-KEM key") from None
    # X25519 ignores the highest bit.
    if int.from_bytes(curve, "little") & ((1 << 255) - 1) in LOW_ORDER:
        raise ProtocolError(f"{who} has a key of low order")


# ----------------------------------------------------------------------------------------------------------- derivation


@dataclass(frozen=True, slots=True)
class Pair:
    """What two neighbours derive from their root; ``up`` seals from the lower seat to the higher, ``down`` back."""

    up: bytes = field(repr=False)
    down: bytes = field(repr=False)
    mask: bytes = field(repr=False)


def derive(secret: bytes, salt: bytes, info: bytes, size: int = KEY) -> bytes:
    """HKDF-SHA256."""
    return HKDF(hashes.SHA256(), size, salt, info).derive(secret)


def pair(curve_secret: bytes, kem_secret: bytes, text: bytes, transcript: bytes, context: tuple[bytes | int, ...]) -> Pair:
    """The keys of a pair.

    Args:
        curve_secret: from X25519.
        kem_secret: from ML-KEM-768.
        text: the ciphertext that carried ``kem_secret``.
        transcript: hash of everything said so far.
        context: session, round, lower seat, higher seat.
    """
    keys = derive(curve_secret + kem_secret, transcript, frame("pair", *context, digest("ciphertext", text)), 3 * KEY)
    return Pair(keys[:KEY], keys[KEY : 2 * KEY], keys[2 * KEY :])


def seal(key: bytes, text: bytes, context: bytes) -> bytes:
    """AES-256-GCM under a key that seals this text and no other, bound to ``context``."""
    return AESGCM(key).encrypt(NONCE, text, context)


def unseal(key: bytes, box: bytes, context: bytes, what: str) -> bytes:
    """Open what ``seal`` sealed.

    Raises:
        ProtocolError: altered, for somebody else, or from another session.
    """
    try:
        return AESGCM(key).decrypt(NONCE, box, context)
    except InvalidTag:
        raise ProtocolError(f"{what} does not open", why="it was altered, or sealed for another node or session") from None
