"""Flower's records and ours: copies that nobody shares, what a message says of its round, and what a reply measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedscale.flower import quick, touches

Mail: TypeAlias = Message
Record = TypeVar("Record", RecordDict, ArrayRecord, MetricRecord, ConfigRecord)

EXAMPLES = ("num-examples", "num_examples")
ROUND = "server-round"


def apart(content: RecordDict) -> RecordDict:
    """A copy that can be changed without anybody else noticing; only the bytes of arrays, which cannot change, are shared."""
    return _holding(content, {name: _holding(record, {key: _own(value) for key, value in record.items()}) for name, record in content.items()})


def _holding(record: Record, held: dict[str, Any]) -> Record:
    """A record of the same kind."""
    made = record.copy()
    touches.entries(made).update(held)
    return made


def _own(value: Any) -> Any:
    """An entry that can be changed."""
    if isinstance(value, Array):
        return Array(value.dtype, tuple(value.shape), value.stype, value.data)
    return list(value) if isinstance(value, list) else value


def parcel(message: Message, name: str | None = None) -> Message:
    """A message as the other side gets it: what either does with its own, the other does not see.

    Args:
        message: as it was sent.
        name: what it is called under way; by default it keeps its name.
    """
    metadata = touches.twin(message.metadata, **({touches.NAME: name} if name else {}))
    metadata.delivered_at = datetime.now(UTC).isoformat()
    made = touches.twin(message, **{touches.METADATA: metadata})
    if message.has_content():
        made.content = apart(message.content)
    return made


def phase_of(message: Message) -> str:
    """``train``, ``evaluate``, ``query`` or what a legacy server asks besides; without the action."""
    return str(message.metadata.message_type).partition(".")[0]


def round_of(message: Message) -> int | None:
    """The round a message belongs to, as far as it says so."""
    group = str(message.metadata.group_id)
    if group.isdecimal():
        return int(group)
    numbers = (record[ROUND] for record in message.content.values() if isinstance(record, ConfigRecord) and ROUND in record)
    return next((number for number in numbers if isinstance(number, int)), None)


def nbytes(content: RecordDict) -> int:
    """Bytes of all arrays, which are what travels."""
    return sum(len(array.data) for record in content.values() if isinstance(record, ArrayRecord) for array in record.values())


def measured(content: RecordDict) -> tuple[float, dict[str, float]]:
    """``(examples, metrics)`` of a reply: every single number that it reports; one example where it does not say how many."""
    values = dict(_numbers(content))
    examples = [values.pop(name) for name in EXAMPLES if name in values]
    return (examples[0] if examples else 1.0), values


def _numbers(content: RecordDict) -> Iterator[tuple[str, float]]:
    """Numbers in metric records, and in the config records in which legacy replies carry their metrics."""
    for name, record in content.items():
        if isinstance(record, MetricRecord) or (isinstance(record, ConfigRecord) and str(name).endswith("res.metrics")):
            yield from ((key, float(value)) for key, value in record.items() if isinstance(value, int | float) and not isinstance(value, bool))


def numpy_of(record: ArrayRecord) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of a record by name; an empty legacy model has none."""
    return {name: quick.numpy(array) for name, array in record.items() if array.data}


def record_of(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ArrayRecord:
    """Named arrays as a record."""
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()})
