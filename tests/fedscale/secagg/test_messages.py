"""Bytes of messages: canonical, bounded, and nothing else is accepted."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.errors import ProtocolError
from fedscale.secagg import codec
from fedscale.secagg import messages as m
from fedscale.secagg.keys import CURVE_KEY, KEM_KEY, KEM_TEXT, SIGNATURE
from fedscale.secagg.parameters import Profile
from fedscale.secagg.terms import Mark, Suite, Terms

DIGESTS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, 2**63)
SEATS = st.frozensets(st.integers(0, 300), max_size=12)
TERMS = st.builds(
    Terms,
    run=st.text(max_size=20),
    round=NUMBERS,
    plan=DIGESTS,
    model=DIGESTS,
    roster=DIGESTS,
    length=NUMBERS,
    limit=NUMBERS,
    bits=NUMBERS,
    suite=st.sampled_from(Suite),
    profile=st.sampled_from(Profile),
    adversarial=st.floats(0, 1).map(abs),
    dropout=st.floats(0, 1).map(abs),
)


def items(size: int) -> st.SearchStrategy[tuple[m.Item, ...]]:
    item = st.builds(m.Item, NUMBERS, st.binary(min_size=size, max_size=size))
    return st.lists(item, max_size=3, unique_by=lambda i: i.seat).map(lambda found: tuple(sorted(found, key=lambda i: i.seat)))


KEYS = st.builds(
    m.Keys,
    st.integers(0, 300),
    st.binary(min_size=CURVE_KEY, max_size=CURVE_KEY),
    st.just(bytes(KEM_KEY)),
    st.binary(min_size=SIGNATURE, max_size=SIGNATURE),
)
PARCELS = st.builds(m.Parcel, NUMBERS, st.binary(min_size=m.BOX, max_size=m.BOX), DIGESTS, DIGESTS, DIGESTS)
MESSAGES = st.one_of(
    st.builds(m.Open, TERMS),
    KEYS,
    st.lists(KEYS, max_size=4, unique_by=lambda keys: keys.member).map(m.Directory.of),
    st.builds(m.Agreement, DIGESTS, items(KEM_TEXT)),
    st.builds(m.Agreed, DIGESTS, SEATS, items(KEM_TEXT)),
    st.builds(m.Shares, DIGESTS, st.binary(max_size=80), DIGESTS, DIGESTS, st.lists(PARCELS, max_size=3).map(tuple)),
    st.builds(m.Boxes, DIGESTS, SEATS, items(m.BOX)),
    st.builds(m.Masked, DIGESTS),
    st.builds(m.Survivors, DIGESTS, SEATS),
    st.builds(m.Consent, DIGESTS, st.binary(min_size=SIGNATURE, max_size=SIGNATURE)),
    st.builds(m.Consents, DIGESTS, items(SIGNATURE)),
    st.builds(m.Opened, DIGESTS, items(32), items(32)),
)


@settings(max_examples=200, deadline=None)
@given(message=MESSAGES)
def test_every_message_comes_back(message: m.Message) -> None:
    assert m.decode(m.encode(message)) == message


@settings(max_examples=150, deadline=None)
@given(message=MESSAGES, data=st.data())
def test_what_is_cut_or_added_is_refused(message: m.Message, data: st.DataObject) -> None:
    whole = m.encode(message)
    with pytest.raises(ProtocolError):
        m.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ProtocolError):
        m.decode(whole + b"\x00")


@settings(max_examples=300, deadline=None)
@given(message=MESSAGES, at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_other_bytes_are_another_message_or_none(message: m.Message, at: int, flip: int) -> None:
    """There is one encoding of each message: what decodes at all encodes to the bytes it came from."""
    whole = bytearray(m.encode(message))
    whole[at % len(whole)] ^= flip
    try:
        other = m.decode(bytes(whole))
    except ProtocolError:
        return
    assert other != message
    assert m.encode(other) == bytes(whole)


@given(data=st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.decode(data)
    with pytest.raises(ProtocolError):
        m.decode(m.MAGIC + b"\x00" + data)


def test_a_message_out_of_turn_is_named() -> None:
    with pytest.raises(ProtocolError, match="'Masked' out of turn .*'Survivors' is due"):
        m.expect(m.Masked(bytes(32)), m.Survivors)


@pytest.mark.parametrize("seats", [(1, 1), (2, 1)])
def test_items_have_one_order(seats: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="ascending"):
        m.by_seat(tuple(m.Item(seat, b"") for seat in seats))


def test_a_directory_is_a_table() -> None:
    rows = [m.Keys(member, bytes([member]) * CURVE_KEY, bytes([member]) * KEM_KEY, bytes([member]) * SIGNATURE) for member in (7, 2, 9)]
    directory = m.Directory.of(rows)
    assert directory.seats == (2, 7, 9)
    assert [directory.keys(seat, member) for seat, member in enumerate(directory.seats)] == [rows[1], rows[0], rows[2]]
    assert directory.session(b"t" * 32) != directory.session(b"T" * 32) != m.Directory.of(rows[:2]).session(b"t" * 32)
    with pytest.raises(ProtocolError, match="differ in length"):
        replace(directory, members=frozenset({2, 7}))


def test_the_signature_of_keys_covers_all_of_them() -> None:
    keys = m.Keys(1, b"c" * CURVE_KEY, b"k" * KEM_KEY, b"")
    others = [replace(keys, member=2), replace(keys, curve=b"C" * CURVE_KEY), replace(keys, kem=b"K" * KEM_KEY)]
    assert len({keys.signed(b"t"), keys.signed(b"u"), *(other.signed(b"t") for other in others)}) == 5


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (codec.Text(4), codec.LENGTH.pack(2) + b"\xff\xfe"),
        (codec.Blob(3), codec.LENGTH.pack(4) + bytes(4)),
        (codec.Blob(1 << 30), codec.LENGTH.pack(1 << 29)),
        (codec.Seats(), codec.LENGTH.pack(2) + b"\x01\x00"),
        (codec.Word(Suite), codec.LENGTH.pack(4) + b"none"),
        (codec.Many(codec.Number()), codec.LENGTH.pack(codec.MOST_SEATS + 1)),
        (codec.Number(), bytes(9)),
        *((codec.Rate(), struct.pack(">d", value)) for value in (float("nan"), float("inf"), -0.0, -1.0, 1.5)),
    ],
)
def test_what_is_not_canonical_is_refused(kind: Any, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.whole(kind, data)


def test_too_much_is_not_written_either() -> None:
    rows = codec.Rows(m.Item, data=3)
    cases: list[tuple[Any, Any]] = [(codec.Fixed(3), b"four"), (codec.Blob(3), b"four"), (codec.Text(3), "four"), (rows, [m.Item(1, b"four")])]
    for kind, value in cases:
        with pytest.raises(ProtocolError):
            kind.write(value)


def test_no_seat_is_a_set_too() -> None:
    assert codec.Seats().write(frozenset()) == codec.LENGTH.pack(0)
    assert codec.Seats().write(frozenset({0, 9})) == codec.LENGTH.pack(2) + b"\x01\x02"


def test_no_message_is_longer_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MOST_BYTES", 30)
    with pytest.raises(ProtocolError, match="too long"):
        m.decode(m.encode(m.Masked(bytes(32))))


def test_shares_do_not_show_in_texts() -> None:
    assert "secret" not in repr(m.Opened(bytes(32), (m.Item(1, b"secret"),), ()))
    assert "secret" not in repr(Mark("run", answer=b"secret"))
