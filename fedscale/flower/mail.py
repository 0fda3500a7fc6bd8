"""Flower's messages as bytes, for a transport that is not Flower's: names and plain values as JSON, and behind it the bytes of arrays.

Nothing in it is code, and reading it runs none. The same records always give the same bytes, so a digest tells whether a
message is the one that was sent before: what changes from time to time, such as when it was made, is left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedscale.errors import ProtocolError
from fedscale.flower import touches
from fedscale.flower.records import Mail

Record: TypeAlias = "ArrayRecord | MetricRecord | ConfigRecord"

LENGTH, WORD, BITS = 8, 4, 64
KINDS: Mapping[str, Any] = {"arrays": ArrayRecord, "metrics": MetricRecord, "config": ConfigRecord}


def packed(content: RecordDict) -> bytes:
    """Records as bytes, in whole words of 4."""
    parts: list[bytes] = []
    head = json.dumps([[str(name), *_written(record, parts)] for name, record in content.items()], separators=(",", ":")).encode()
    whole = b"".join([len(head).to_bytes(LENGTH, "little"), head, *parts])
    return whole + bytes(-len(whole) % WORD)


def unpacked(data: bytes) -> RecordDict:
    """What ``packed`` was given.

    Raises:
        ProtocolError: it is malformed.
    """
    size = int.from_bytes(data[:LENGTH], "little")
    view, start = memoryview(data), LENGTH + size
    try:
        content = RecordDict()
        for name, kind, items in json.loads(bytes(view[LENGTH:start])):
            if kind == "arrays":
                arrays, start = _arrays(items, view, start)
                content[name] = ArrayRecord(arrays)
            else:
                content[name] = KINDS[kind]({key: _value(value) for key, value in items})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProtocolError("a message's records are malformed", why=type(error).__name__) from None
    return content


def envelope(message: Mail, run: int) -> str:
    """What a ClientApp may read of a message besides its records."""
    facts = message.metadata
    named = {"id": facts.message_id, "type": facts.message_type, "group": facts.group_id, "ttl": facts.ttl, "node": facts.dst_node_id}
    return json.dumps({**named, "run": run}, separators=(",", ":"))


def opened(written: str, content: bytes) -> tuple[Mail, int]:
    """The message behind an envelope and its content, and the number of its run.

    Raises:
        ProtocolError: one of both is malformed.
    """
    records = unpacked(content)
    try:
        facts = json.loads(written)
        run = int(facts["run"])
        touches.identify(run)
        message = Message(records, int(facts["node"]), str(facts["type"]), ttl=float(facts["ttl"]), group_id=str(facts["group"] or ""))
        touches.stamp(message, str(facts["id"]), run)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProtocolError("a message's envelope is malformed", why=type(error).__name__) from None
    return message, run


def _written(record: Record, parts: list[bytes]) -> tuple[str, list[Any]]:
    """A record's kind and entries; the bytes of arrays go to ``parts``."""
    if isinstance(record, ArrayRecord):
        parts += [array.data for array in record.values()]
        return "arrays", [[str(name), array.dtype, list(array.shape), array.stype, len(array.data)] for name, array in record.items()]
    return "metrics" if isinstance(record, MetricRecord) else "config", [[str(name), _plain(value)] for name, value in record.items()]


def _plain(value: Any) -> Any:
    """A value as JSON; bytes are marked, for JSON has none."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _value(plain: Any) -> Any:
    """What ``_plain`` was given."""
    if isinstance(plain, dict):
        return base64.b64decode(plain["base64"])
    if isinstance(plain, int) and plain.bit_length() > BITS:
        raise ValueError("an integer that Flower has no place for")
    return [_value(entry) for entry in plain] if isinstance(plain, list) else plain


def _arrays(items: list[Any], view: memoryview, start: int) -> tuple[dict[str, Array], int]:
    """The arrays of a record, and where the next one's bytes begin."""
    arrays = {}
    for name, dtype, shape, stype, size in items:
        if not isinstance(size, int) or not 0 <= size <= len(view) - start:
            raise ValueError("an array ends beyond the message")
        arrays[name] = Array(dtype=dtype, shape=tuple(shape), stype=stype, data=bytes(view[start : start + size]))
        start += size
    return arrays, start
