"""Messages as bytes: everything that Flower's records can hold comes back as it was, the same records always give the same bytes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import ProtocolError
from fedscale.flower import mail, touches

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
TEXTS = st.text(max_size=8)
LISTS = st.lists(st.integers(-9, 9), max_size=3) | st.lists(st.floats(allow_nan=False), max_size=3)
VALUES = st.booleans() | NUMBERS | TEXTS | st.binary(max_size=8) | LISTS | st.lists(TEXTS, max_size=3) | st.lists(st.binary(max_size=4), max_size=3)
ARRAYS = st.binary(max_size=16).map(lambda data: Array(dtype="", shape=(), stype="", data=data)) | st.integers(0, 5).map(
    lambda size: Array(np.arange(size, dtype=np.float32).reshape(1, -1))
)
RECORDS = (
    st.dictionaries(TEXTS, NUMBERS | LISTS, max_size=3).map(MetricRecord)
    | st.dictionaries(TEXTS, VALUES, max_size=3).map(ConfigRecord)
    | st.dictionaries(TEXTS, ARRAYS, max_size=3).map(ArrayRecord)
)


@given(st.dictionaries(TEXTS, RECORDS, max_size=4))
def test_whatever_records_hold_comes_back_in_its_order_and_type(tree: dict[str, Any]) -> None:
    content = RecordDict(tree)
    data = mail.packed(content)
    again = mail.unpacked(data)
    assert again == content
    assert [list(record) for record in again.values()] == [list(record) for record in content.values()]
    kinds = [[type(value) for value in record.values()] for record in content.values()]
    assert [[type(value) for value in record.values()] for record in again.values()] == kinds
    assert mail.packed(again) == data
    assert len(data) % 4 == 0


def test_numbers_that_are_none_come_back_too() -> None:
    again = mail.unpacked(mail.packed(RecordDict({"m": MetricRecord({"nan": math.nan, "much": math.inf})})))
    assert math.isnan(again["m"]["nan"])
    assert again["m"]["much"] == math.inf


def test_a_message_comes_with_what_a_client_may_read_of_it() -> None:
    touches.identify(77)
    message = Message(RecordDict({"c": ConfigRecord({"a": 1})}), 12, "train.special", group_id="3", ttl=50.0)
    touches.stamp(message, "0-4", 77)
    again, run = mail.opened(mail.envelope(message, 77), mail.packed(message.content))
    facts, known = again.metadata, message.metadata
    assert (run, facts.run_id, facts.message_id, facts.dst_node_id, facts.src_node_id) == (77, 77, "0-4", 12, known.src_node_id)
    assert (facts.message_type, facts.group_id, facts.ttl) == ("train.special", "3", 50.0)
    assert again.content == message.content
    reply = Message(RecordDict(), reply_to=again)
    assert (reply.metadata.reply_to_message_id, reply.metadata.dst_node_id) == ("0-4", facts.src_node_id)


def test_when_a_message_was_made_changes_nothing() -> None:
    touches.identify(1)
    first, second = (Message(RecordDict({"c": ConfigRecord({"a": 1})}), 12, "train", ttl=9.0) for _ in range(2))
    second.metadata.__dict__["_created_at"] = 5.0
    for message in (first, second):
        touches.stamp(message, "0-1", 1)
    assert mail.envelope(first, 1) == mail.envelope(second, 1)
    assert mail.packed(first.content) == mail.packed(second.content)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (4).to_bytes(8, "little") + b"null",
        (2).to_bytes(8, "little") + b"{}"[:1],
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (39).to_bytes(8, "little") + b'[["m","metrics",[["loss",%d]]]]' % 10**19,
        b"%s" % ((31).to_bytes(8, "little") + b'[["a","pickle",[["b","value"]]]]'[:31]),
    ],
)
def test_malformed_records_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="a message's records are malformed"):
        mail.unpacked(data)


@pytest.mark.parametrize("entry", [["x", "f4", [1], "", 99], ["x", "f4", [1], "", -1], ["x", "f4", [1], "", "9"], ["x"]])
def test_an_array_never_reaches_beyond_its_message(entry: list[Any]) -> None:
    head = json.dumps([["a", "arrays", [entry]]]).encode()
    with pytest.raises(ProtocolError, match="a message's records are malformed"):
        mail.unpacked(len(head).to_bytes(8, "little") + head + b"1234")


@pytest.mark.parametrize("written", ["", "[]", "{}", '{"run": 1, "node": "x", "type": "train", "ttl": 1, "group": "", "id": "a"}'])
def test_a_malformed_envelope_is_refused(written: str) -> None:
    with pytest.raises(ProtocolError, match="a message's envelope is malformed"):
        mail.opened(written, mail.packed(RecordDict()))
