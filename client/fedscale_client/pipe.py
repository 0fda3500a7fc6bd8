"""The pipe between a node and its worker: JSON objects, each behind its length in four bytes."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, BinaryIO, TypeAlias

from fedscale.errors import ProtocolError

Message: TypeAlias = dict[str, Any]

LENGTH = struct.Struct(">I")
LONGEST = 64 << 20


def encode(message: Message) -> bytes:
    """A message as it goes through the pipe."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def receive(stream: BinaryIO) -> Message | None:
    """The next message of a blocking stream, ``None`` when the other side is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    size = _length(head)
    body = stream.read(size)
    return _decode(body) if len(body) == size else None


async def receive_async(stream: asyncio.StreamReader) -> Message | None:
    """The next message of an asyncio stream, ``None`` when the other side is gone."""
    try:
        size = _length(await stream.readexactly(LENGTH.size))
        return _decode(await stream.readexactly(size))
    except asyncio.IncompleteReadError:
        return None


def _length(head: bytes) -> int:
    (size,) = LENGTH.unpack(head)
    if size > LONGEST:
        raise ProtocolError("a worker's message is too long")
    return int(size)


def _decode(body: bytes) -> Message:
    """A JSON object; anything else means that something wrote into the pipe that should not have."""
    try:
        message = json.loads(body)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ProtocolError("a worker's message is malformed")
    return message
