"""Who is who: proofs of identity keys, signed rosters and the keys that were seen before."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fedscale.errors import PolicyRefusal, ProtocolError
from fedscale.secagg.authority import RosterAuthority, check_pins, claim, claimed, opened
from fedscale.secagg.keys import public_of
from fedscale.secagg.terms import Member, Roster

CA = ec.generate_private_key(ec.SECP256R1())
AUTHORITY = RosterAuthority.of(CA)
KEY = ed25519.Ed25519PrivateKey.generate()
ROSTER = Roster((Member("ann", bytes(31) + b"\x01"), Member("bob", bytes(31) + b"\x02")))


def test_the_authority_of_rosters_follows_from_that_of_certificates() -> None:
    again, other = RosterAuthority.of(CA), RosterAuthority.of(ec.generate_private_key(ec.SECP256R1()))
    assert public_of(again.key) == public_of(AUTHORITY.key) != public_of(other.key)
    assert again.statement[:32] == AUTHORITY.statement[:32] == public_of(again.key)
    assert "key=" not in repr(AUTHORITY)


def test_a_signed_roster_is_read_back_by_whoever_pinned_the_certificate() -> None:
    assert opened(AUTHORITY.sign(ROSTER), AUTHORITY.statement, CA.public_key()) == ROSTER


@pytest.mark.parametrize("at", [0, 40, 70, -1])
def test_a_changed_roster_is_refused(at: int) -> None:
    signed = bytearray(AUTHORITY.sign(ROSTER))
    signed[at] ^= 1
    with pytest.raises(ProtocolError):
        opened(bytes(signed), AUTHORITY.statement, CA.public_key())


@pytest.mark.parametrize("at", [0, 31, 32, 60, -1])
def test_a_changed_statement_is_refused(at: int) -> None:
    statement = bytearray(AUTHORITY.statement)
    statement[at] ^= 1
    with pytest.raises(ProtocolError, match="the authority of the roster is not that of this federation"):
        opened(AUTHORITY.sign(ROSTER), bytes(statement), CA.public_key())


@pytest.mark.parametrize("statement", [b"", bytes(32), bytes(500), AUTHORITY.statement[:-1]])
def test_what_is_no_statement_is_refused(statement: bytes) -> None:
    with pytest.raises(ProtocolError, match="not that of this federation"):
        opened(AUTHORITY.sign(ROSTER), statement, CA.public_key())


def test_a_key_of_another_kind_vouches_for_nothing() -> None:
    with pytest.raises(ProtocolError, match="a key of another kind"):
        opened(AUTHORITY.sign(ROSTER), AUTHORITY.statement, rsa.generate_private_key(65537, 2048).public_key())


def test_a_claim_proves_the_key_under_one_name() -> None:
    assert claimed("ann", claim(KEY, "ann")) == public_of(KEY).hex()
    with pytest.raises(ProtocolError, match="the signature of the identity of node 'bob' is wrong"):
        claimed("bob", claim(KEY, "ann"))
    stolen = public_of(ed25519.Ed25519PrivateKey.generate()) + claim(KEY, "ann")[32:]
    with pytest.raises(ProtocolError, match="is wrong"):
        claimed("ann", stolen)


@pytest.mark.parametrize("proof", [b"x", bytes(95), bytes(97), claim(KEY, "ann") + b"\0"], ids=["one byte", "short", "long", "trailing"])
def test_what_is_no_claim_is_refused(proof: bytes) -> None:
    with pytest.raises(ProtocolError, match="the identity of node 'ann' is malformed"):
        claimed("ann", proof)


def test_pins_grow_and_never_change() -> None:
    fresh = check_pins(ROSTER, {})
    assert fresh == {"ann": "00" * 31 + "01", "bob": "00" * 31 + "02"}
    assert check_pins(ROSTER, {"ann": fresh["ann"], "zoe": "ff" * 32}) == {"bob": fresh["bob"]}
    assert check_pins(ROSTER, fresh) == {}
    with pytest.raises(PolicyRefusal, match="another identity key for node 'bob' than before"):
        check_pins(ROSTER, {"bob": "ff" * 32})
