"""Letters, replies and metrics of led runs, between messages and values: everything that a leader sends is checked here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from fedscale.errors import ProtocolError
from fedscale.letters import Letter, Reply
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.limits import LETTER, LETTER_SECONDS, METRIC_NAME, METRICS, ROUNDS

MOST_ENVELOPE = 64 << 10
DIGEST = "[0-9a-f]{64}"
MOST_VALUE = sys.float_info.max


def letter_from_proto(message: pb.Letter) -> Letter:
    """A letter of a leader's.

    Raises:
        ProtocolError: it is malformed, or too large.
    """
    sound = (
        re.fullmatch(DIGEST, message.content)
        and re.fullmatch("[a-z][a-z0-9_]{0,31}", message.phase)
        and len(message.envelope) <= MOST_ENVELOPE
        and 0 < message.size <= LETTER
        and 0 < message.seconds <= LETTER_SECONDS
        and message.number >= 1
        and 1 <= message.round <= ROUNDS
    )
    if not sound:
        raise ProtocolError("a letter is malformed, or too large", where=f"letter {message.number} to '{message.node[:64]}'")
    facts = (message.node, message.number, message.envelope, message.content, message.size, message.seconds, message.phase, message.round)
    return Letter(*facts)


def reply_to_proto(reply: Reply, content: Iterator[bytes]) -> Iterator[pb.Reply]:
    """A reply in as many parts as it takes; a failure has one that is empty."""
    part = next(content)
    for following in content:
        yield pb.Reply(sequence=reply.sequence, node=reply.node, number=reply.number, data=part, more=True)
        part = following
    last = pb.Reply(sequence=reply.sequence, node=reply.node, number=reply.number, data=part)
    if reply.failure is not None:
        last.cause, last.what, last.where, last.hint = reply.failure.cause, reply.failure.what, reply.failure.where, reply.failure.hint
    yield last


def metrics_from_text(text: str) -> list[tuple[str, int, dict[str, float]]]:
    """What a leader made of the replies, by phase and round.

    Raises:
        ProtocolError: it is malformed, or too large.
    """
    try:
        rows = json.loads(text or "[]") if len(text) <= METRICS else None
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ProtocolError("the metrics of a led run are malformed, or too large")
    return [(phase, number, {name: float(value) for name, value in values.items()}) for phase, number, values in rows]


def model_from_text(text: str) -> str:
    """The SHA-256 of the model that a leader keeps; empty where it has none.

    Raises:
        ProtocolError: it is none.
    """
    if text and not re.fullmatch(DIGEST, text):
        raise ProtocolError("the digest of a led run's model is malformed")
    return text


def _is_row(row: Any) -> bool:
    """Whether this is a phase, a round, and its metrics."""
    match row:
        case ["train" | "evaluate", int(number), dict(values)] if 0 <= number <= ROUNDS:
            return all(0 < len(name) <= METRIC_NAME and isinstance(value, int | float) and abs(value) <= MOST_VALUE for name, value in values.items())
    return False
