"""The committed vectors against the code and against a second implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedscale.secagg import messages as m
from fedscale.secagg.codec import whole
from fedscale.secagg.session import Session
from fedscale.secagg.terms import TERMS, Member, Roster, Terms
from tests.fedscale.secagg.reference import Reference, hkdf, shamir
from tests.vectors import make_secagg_v1


@pytest.fixture(scope="module", params=["committed", "fresh"])
def known(request: pytest.FixtureRequest, root: Path) -> dict[str, Any]:
    """The vectors of the repository, which bind the format, and new ones, which bind the code."""
    if request.param == "fresh":
        return make_secagg_v1.make()
    found: dict[str, Any] = json.loads((root / "tests/vectors/secagg_v1.json").read_text())
    return found


def test_the_session_is_the_hash_of_terms_and_keys(known: dict[str, Any]) -> None:
    assert Reference(known).id.hex() == known["session"]
    terms: Terms = whole(TERMS, bytes.fromhex(known["terms"]))
    entries = [m.expect(m.decode(bytes.fromhex(keys)), m.Keys) for keys in known["keys"]]
    roster = Roster(tuple(Member(name, bytes([at]) * 32) for at, name in enumerate(sorted(known["vectors"]))))
    session = Session.of(terms, roster, m.Directory.of(entries))
    assert session.id.hex() == known["session"]
    assert session.threshold == 3


def test_every_masked_vector(known: dict[str, Any]) -> None:
    reference = Reference(known)
    assert set(known["masked"]) == set(reference.names) - {known["dropped"]}
    assert {name: reference.masked(reference.names.index(name)) for name in known["masked"]} == known["masked"]


def test_the_shares_give_the_secrets(known: dict[str, Any]) -> None:
    """Those of survivors their self mask, those of the dropped the key to its pair masks."""
    reference = Reference(known)
    gathered: dict[tuple[int, int], dict[int, int]] = {}
    for name, data in known["opened"].items():
        opened = m.expect(m.decode(bytes.fromhex(data)), m.Opened)
        for use, items in ((2, opened.self_shares), (3, opened.pair_shares)):
            for item in items:
                gathered.setdefault((item.seat, use), {})[reference.names.index(name) + 1] = int.from_bytes(item.data, "big")
    assert set(gathered) == {(0, 2), (2, 2), (3, 2), (1, 3)}
    for (seat, use), points in gathered.items():
        assert shamir(points).to_bytes(32, "big") == reference.drawn[seat][use]


def test_the_sum(known: dict[str, Any]) -> None:
    present = [known["vectors"][name] for name in known["masked"]]
    assert [sum(column) % 2**32 for column in zip(*present, strict=True)] == known["sum"]


def test_the_second_implementation_knows_the_standard() -> None:
    """RFC 5869, appendix A.1."""
    known = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42).hex() == known
