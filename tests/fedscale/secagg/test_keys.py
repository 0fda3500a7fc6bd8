"""Keys against the vectors of their standards, and the refusals that the standards leave to the caller."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedscale.errors import ProtocolError
from fedscale.secagg import keys
from fedscale.secagg.transcript import digest, frame

# Points of small order on the curve and its twist, RFC 7748 section 6.1 and the list of Bernstein; also not reduced.
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    *((2**255 - 19 + offset).to_bytes(32, "little") for offset in (-1, 0, 1)),
]


def session_keys(private: str) -> keys.SessionKeys:
    return keys.SessionKeys(X25519PrivateKey.from_private_bytes(bytes.fromhex(private)), MLKEM768PrivateKey.generate())


def test_x25519_of_rfc_7748() -> None:
    """Section 6.1."""
    alice = session_keys("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = session_keys("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert alice.public[0].hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public[0].hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.exchange(bob.public[0], "bob").hex() == bob.exchange(alice.public[0], "alice").hex() == shared


def test_hkdf_of_rfc_5869() -> None:
    """Appendix A.1."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    known = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert keys.derive(b"\x0b" * 22, salt, info, 42).hex() == known


def test_ed25519_of_rfc_8032() -> None:
    """Section 7.1, test 2."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    assert keys.public_of(key).hex() == public
    assert key.sign(b"\x72").hex() == signature
    keys.verify(bytes.fromhex(public), bytes.fromhex(signature), b"\x72", "the vector")
    for wrong in (b"\x73", b""):
        with pytest.raises(ProtocolError, match="the signature of the vector is wrong"):
            keys.verify(bytes.fromhex(public), bytes.fromhex(signature), wrong, "the vector")


def test_aes_256_gcm_of_its_specification() -> None:
    """Test case 14."""
    assert keys.seal(bytes(32), bytes(16), b"").hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_ml_kem_round_trip() -> None:
    """The sizes of FIPS 203, and that a seed gives the same key for ever."""
    own = keys.SessionKeys.new(lambda size: b"\x07" * size)
    again = keys.SessionKeys.new(lambda size: b"\x07" * size)
    assert own.public == again.public
    assert [len(part) for part in own.public] == [keys.CURVE_KEY, keys.KEM_KEY]
    secret, text = keys.encapsulate(own.public[1], "me")
    assert len(text) == keys.KEM_TEXT
    assert own.decapsulate(text, "me") == again.decapsulate(text, "me") == secret
    # FIPS 203 rejects implicitly: another secret, no error.
    assert own.decapsulate(bytes([text[0] ^ 1]) + text[1:], "me") != secret


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_points_of_low_order_are_refused(point: bytes) -> None:
    own = keys.SessionKeys.new(lambda size: b"\x07" * size)
    with pytest.raises(ProtocolError, match="bob has a key of low order"):
        own.exchange(point, "bob")
    with pytest.raises(ProtocolError, match="bob has a key of low order"):
        keys.check_public(point, own.public[1], "bob")
    with pytest.raises(ProtocolError, match="bob has a key of low order"):
        keys.check_public(point[:31] + bytes([point[31] | 0x80]), own.public[1], "bob")


def test_malformed_kem_keys_and_texts_are_refused() -> None:
    own = keys.SessionKeys.new(lambda size: b"\x07" * size)
    curve, kem = own.public
    # FIPS 203 section 7.2: coefficients must be below q.
    for bad in (kem[:-1], b"\xff" * keys.KEM_KEY):
        with pytest.raises(ProtocolError, match="bob has a malformed ML-KEM key"):
            keys.encapsulate(bad, "bob")
        with pytest.raises(ProtocolError, match="malformed ML-KEM key"):
            keys.check_public(curve, bad, "bob")
    with pytest.raises(ProtocolError, match="what bob encapsulated cannot be read"):
        own.decapsulate(bytes(5), "bob")
    keys.check_public(curve, kem, "bob")


def test_a_signature_under_no_key_is_wrong() -> None:
    with pytest.raises(ProtocolError, match="wrong"):
        keys.verify(b"\xff" * 31, bytes(64), b"", "anything")


BASE = (b"c" * 32, b"k" * 32, b"text", b"t" * 32, (b"s" * 32, 1, 2, 3))


@pytest.mark.parametrize(
    "other",
    [
        (b"C" * 32, *BASE[1:]),
        (BASE[0], b"K" * 32, *BASE[2:]),
        (*BASE[:2], b"Text", *BASE[3:]),
        (*BASE[:3], b"T" * 32, BASE[4]),
        *((*BASE[:4], context) for context in [(b"S" * 32, 1, 2, 3), (b"s" * 32, 9, 2, 3), (b"s" * 32, 1, 9, 3), (b"s" * 32, 1, 2, 9)]),
    ],
)
def test_every_input_changes_every_derived_key(other: tuple[bytes, bytes, bytes, bytes, tuple[bytes | int, ...]]) -> None:
    """Both secrets, the ciphertext, the transcript, the session, the round and both ends."""
    one, two = keys.pair(*BASE), keys.pair(*other)
    assert len({one.up, one.down, one.mask, two.up, two.down, two.mask}) == 6


def test_secrets_do_not_show_in_texts() -> None:
    made = keys.pair(*BASE)
    assert made.mask.hex() not in repr(made)
    assert repr(made.up) not in repr(made)
    assert "object at" not in repr(keys.SessionKeys.new(lambda size: b"\x07" * size))


def test_a_box_opens_for_its_context_alone() -> None:
    box = keys.seal(b"k" * 32, b"shares", b"from 1 to 2")
    assert keys.unseal(b"k" * 32, box, b"from 1 to 2", "it") == b"shares"
    assert AESGCM(b"k" * 32).decrypt(bytes(12), box, b"from 1 to 2") == b"shares"
    for key, data, context in [
        (b"K" * 32, box, b"from 1 to 2"),
        (b"k" * 32, box[:-1] + bytes([box[-1] ^ 1]), b"from 1 to 2"),
        (b"k" * 32, box, b"from 1 to 3"),
    ]:
        with pytest.raises(ProtocolError, match="it does not open"):
            keys.unseal(key, data, context, "it")
    with pytest.raises(ProtocolError, match="it does not open"):
        keys.unseal(b"k" * 32, b"short", b"", "it")


def test_frames_cannot_be_mistaken_for_one_another() -> None:
    frames = [
        frame("a", b"bc"),
        frame("ab", b"c"),
        frame("a", b"b", b"c"),
        frame("a", b"b", b"c", b""),
        frame("a", 1),
        frame("a", b"\x01"),
        frame("a"),
    ]
    assert len(set(frames)) == len(frames)
    assert digest("a", b"b") != digest("b", b"a")
    assert frame("x", 5) == frame("x", (5).to_bytes(8, "big"))


def test_ml_kem_768_has_the_published_answers(root: Path) -> None:
    """A key from its seed, and the secret of a ciphertext that was tampered with, which must be one that only the holder of the key can compute."""
    known = json.loads((root / "tests/vectors/mlkem_768.json").read_text())
    seed, text = bytes.fromhex(known["seed"]), bytes.fromhex(known["c"])
    own = keys.SessionKeys.new(lambda size: seed if size == keys.KEM_SEED else bytes([1]) * size)
    assert hashlib.sha256(own.public[1]).hexdigest() == known["ek_sha256"]
    assert own.decapsulate(text, "nobody").hex() == known["K"]
    rejected = hashlib.shake_256(seed[keys.KEM_SEED // 2 :] + text).digest(32)
    assert rejected.hex() == known["K"], "FIPS 203, algorithm 18, line 7"
