"""The pipe between node and worker: whole messages or none."""

from __future__ import annotations

import asyncio
import io

import pytest

from fedscale.errors import ProtocolError
from fedscale_client import pipe

MESSAGES: list[pipe.Message] = [{"a": 1}, {"text": "Grüße", "list": [1.5, None]}, {}]
STREAM = b"".join(map(pipe.encode, MESSAGES))


def stream_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def test_messages_come_back_in_order() -> None:
    stream = io.BytesIO(STREAM)
    assert [pipe.receive(stream) for _ in MESSAGES] == MESSAGES
    assert pipe.receive(stream) is None


async def test_messages_come_back_in_order_without_blocking() -> None:
    stream = stream_of(STREAM)
    assert [await pipe.receive_async(stream) for _ in MESSAGES] == MESSAGES
    assert await pipe.receive_async(stream) is None


@pytest.mark.parametrize("kept", [1, 3, 4, 9])
async def test_a_torn_message_is_none(kept: int) -> None:
    assert pipe.receive(io.BytesIO(STREAM[:kept])) is None
    assert await pipe.receive_async(stream_of(STREAM[:kept])) is None


@pytest.mark.parametrize("body", [b"nonsense", b"[1]", b'"text"', b"\xff\xfe", b"{"])
async def test_anything_but_an_object_is_refused(body: bytes) -> None:
    data = pipe.LENGTH.pack(len(body)) + body
    with pytest.raises(ProtocolError, match="malformed"):
        pipe.receive(io.BytesIO(data))
    with pytest.raises(ProtocolError, match="malformed"):
        await pipe.receive_async(stream_of(data))


async def test_a_length_nobody_would_send_reserves_nothing() -> None:
    data = pipe.LENGTH.pack(pipe.LONGEST + 1)
    with pytest.raises(ProtocolError, match="too long"):
        pipe.receive(io.BytesIO(data))
    with pytest.raises(ProtocolError, match="too long"):
        await pipe.receive_async(stream_of(data))
