"""The proxy really breaks what it says it breaks: an echo behind it, and a client that looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import pytest

from fedscale_simulations.chaos.proxy import BLOCK, CALM, Proxy, Weather

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PATIENCE = 30.0
BLINK = 0.2


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(1 << 16):
            writer.write(block)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def behind(weather: Weather = CALM) -> AsyncIterator[tuple[Proxy, int]]:
    """A proxy in front of an echo, and its port."""
    echoing: set[asyncio.Task[None]] = set()
    server = await asyncio.start_server(lambda *streams: echoing.add(asyncio.create_task(echo(*streams))), "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], weather)
    async with asyncio.timeout(PATIENCE), proxy.serve() as port:
        yield proxy, port
    server.close()
    if echoing:
        await asyncio.wait(echoing, timeout=PATIENCE)


async def ask(streams: Streams, data: bytes) -> bytes:
    """What comes back."""
    reader, writer = streams
    writer.write(data)
    await writer.drain()
    return await reader.readexactly(len(data))


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[Streams]:
    """A connection, closed in the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_in_calm_weather_everything_passes_as_it_is() -> None:
    data = bytes(range(256)) * 1000
    async with behind() as (proxy, port), opened(port) as streams:
        assert await ask(streams, data) == data
        assert (proxy.passed.up, proxy.passed.down, proxy.passed.flipped, proxy.passed.connections) == (len(data), len(data), 0, 1)


async def test_an_end_is_passed_on() -> None:
    async with behind() as (_, port), opened(port) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read() == b"last words"


async def test_late_blocks_are_late_each_way() -> None:
    async with behind(Weather(latency=0.1)) as (_, port), opened(port) as streams:
        began = time.monotonic()
        await ask(streams, b"x")
        assert time.monotonic() - began >= 0.2


async def test_a_narrow_line_takes_its_time() -> None:
    async with behind(Weather(bandwidth=10 * BLOCK)) as (_, port), opened(port) as streams:
        began = time.monotonic()
        await ask(streams, bytes(2 * BLOCK))
        assert time.monotonic() - began >= 0.2


async def test_nothing_passes_a_partition_and_everything_after_it() -> None:
    async with behind() as (proxy, port), opened(port) as streams:
        await ask(streams, b"x")
        proxy.partition()
        async with opened(port) as late:
            answers = [asyncio.create_task(ask(each, b"are you there?")) for each in (streams, late)]
            await asyncio.sleep(BLINK)
            assert ([answer.done() for answer in answers], proxy.passed.up) == ([False, False], 1)
            proxy.partition(cut=False)
            assert [await answer for answer in answers] == [b"are you there?"] * 2


async def test_a_reset_is_an_error_at_once_and_new_connections_work() -> None:
    async with behind() as (proxy, port):
        async with opened(port) as streams:
            await ask(streams, b"x")
            assert proxy.reset() == 1
            with pytest.raises(ConnectionResetError):
                await streams[0].read()
        async with opened(port) as streams:
            assert await ask(streams, b"again") == b"again"


async def test_a_half_close_ends_one_direction_only() -> None:
    async with behind() as (proxy, port), opened(port) as (reader, writer):
        await ask((reader, writer), b"x")
        assert proxy.half_close() == 1
        assert await reader.read() == b""
        writer.write(b"still heard")
        await writer.drain()
        while proxy.passed.up < len(b"xstill heard"):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_every_so_many_bytes_one_bit_is_flipped(size: int) -> None:
    async with behind(Weather(flip=100)) as (proxy, port), opened(port) as streams:
        heard = b"".join([await ask(streams, bytes(size)) for _ in range(1000 // size)])
        ones = sum(byte.bit_count() for byte in heard)
        assert 0 < ones <= proxy.passed.flipped <= 2 * len(heard) / 100 + 1


async def test_who_is_not_there_behind_it_is_not_there_for_the_client() -> None:
    async with behind() as (proxy, port):
        proxy.port = 1
        async with opened(port) as (reader, _):
            assert await reader.read() == b""


async def test_a_closed_proxy_leaves_no_connection() -> None:
    async with behind() as (proxy, port):
        connection = opened(port)
        streams = await connection.__aenter__()
        await ask(streams, b"x")
        proxy.partition()
    with suppress(ConnectionResetError):
        assert await streams[0].read() == b""
    await connection.__aexit__(None, None, None)
    with pytest.raises(OSError, match="[Cc]onnect"):
        await asyncio.open_connection("127.0.0.1", port)
