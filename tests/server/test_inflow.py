"""Frames read ahead of the disk: all of them, in order, never more than there is room for, and the end comes last."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from fedscale.errors import ProtocolError
from fedscale_server.inflow import AHEAD, ENOUGH, Inflow

LONG = 30.0
BIG = bytes(AHEAD // 2)


class Stream:
    """A stream that says how many frames were taken from it, and waits where it is told to.

    Args:
        frames: what comes.
        stop: nothing comes from this number on until ``go`` is set.
        fault: how it ends, if it breaks.
    """

    def __init__(self, frames: list[bytes], stop: int = 1 << 30, fault: Exception | None = None) -> None:
        self.taken, self.go = 0, asyncio.Event()
        self._frames, self._stop, self._fault = frames, stop, fault

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, frame in enumerate(self._frames):
            if number >= self._stop:
                await self.go.wait()
            self.taken += 1
            yield frame
        if self._fault:
            raise self._fault


async def rest(inflow: Inflow) -> list[bytes]:
    """All that is left."""
    got: list[bytes] = []
    while await inflow.wait(LONG) and (parts := inflow.take()) is not None:
        got += parts
    return got


async def settled(holds: Callable[[], bool]) -> None:
    """Until something is so, and for a while after."""
    async with asyncio.timeout(LONG):
        while not holds():
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("ours", [True, False])
async def test_every_frame_arrives_once_and_in_order(*, ours: bool) -> None:
    frames = [bytes([number]) * (number + 1) for number in range(200)]
    inflow = Inflow(aiter(Stream(frames)))
    inflow.turn(ours=ours)
    assert await rest(inflow) == frames
    assert inflow.take() is None
    await inflow.close()


async def test_without_a_turn_one_frame_is_read_ahead_and_with_one_as_much_as_there_is_room_for() -> None:
    stream = Stream([BIG] * 9)
    inflow = Inflow(aiter(stream))
    await settled(lambda: stream.taken == 1)
    assert stream.taken == 1
    inflow.turn(ours=True)
    await settled(lambda: stream.taken == 3)
    assert stream.taken == 3
    assert inflow.take() == [BIG] * 3
    await settled(lambda: stream.taken == 6)
    inflow.turn(ours=False)
    assert inflow.take() == [BIG] * 3
    await settled(lambda: stream.taken == 7)
    assert stream.taken == 7
    assert await rest(inflow) == [BIG] * 3
    await inflow.close()


async def test_what_breaks_a_stream_off_comes_after_what_came_before() -> None:
    inflow = Inflow(aiter(Stream([b"a", b"b"], fault=ProtocolError("broken"))))
    inflow.turn(ours=True)
    await settled(inflow._reading.done)
    assert inflow.take() == [b"a", b"b"]
    with pytest.raises(ProtocolError, match="broken"):
        inflow.take()
    await inflow.close()


async def test_a_wait_ends_when_a_frame_comes_or_something_else_happens_or_nothing_does() -> None:
    stream, ousted = Stream([b"a", b"b"], stop=1), asyncio.get_running_loop().create_future()
    inflow = Inflow(aiter(stream))
    inflow.turn(ours=True)
    assert await inflow.wait(LONG)
    assert inflow.take() == [b"a"]
    assert not await inflow.wait(0.01)
    asyncio.get_running_loop().call_soon(ousted.set_result, None)
    assert not await inflow.wait(LONG, {ousted})
    stream.go.set()
    assert await inflow.wait(LONG)
    assert inflow.take() == [b"b"]
    await inflow.close()


async def test_a_stream_is_let_go_of_in_the_middle() -> None:
    stream = Stream([b"a"] * 3, stop=1)
    inflow = Inflow(aiter(stream))
    await settled(lambda: stream.taken == 1)
    await asyncio.wait_for(inflow.close(), LONG)
    assert inflow._reading.cancelled()
    assert stream.taken == 1


# ------------------------------------------------------------------------------------------------------ taken by a thread


def drained(inflow: Inflow, got: list[bytes], seconds: float = LONG) -> None:
    """Take all there is, as a thread does that stays with a stream."""
    while (parts := inflow.take(seconds)) is not None:
        got += parts


@pytest.mark.parametrize("seed", range(4))
async def test_a_thread_takes_every_frame_once_and_in_order_however_they_come(seed: int) -> None:
    chance, got = random.Random(seed), list[bytes]()
    frames = [chance.randbytes(chance.choice((1, 1000, AHEAD // 8, AHEAD))) for _ in range(60)]

    async def stream() -> AsyncIterator[bytes]:
        for frame in frames:
            await asyncio.sleep(chance.choice((0, 0, 0, 0.002)))
            yield frame

    inflow = Inflow(stream())
    inflow.turn(ours=True)
    await asyncio.wait_for(asyncio.to_thread(drained, inflow, got, 0.01), LONG)
    assert got == frames
    await inflow.close()


async def test_a_thread_that_waits_is_woken_once_it_is_worth_the_while_and_not_before() -> None:
    stream = Stream([bytes(ENOUGH // 4)] * 9, stop=3)
    inflow = Inflow(aiter(stream))
    inflow.turn(ours=True)
    taking = asyncio.create_task(asyncio.to_thread(inflow.take, LONG))
    await settled(lambda: stream.taken == 3)
    assert not taking.done()
    stream.go.set()
    parts = await asyncio.wait_for(taking, LONG)
    assert parts is not None
    assert len(parts) >= 4
    await inflow.close()


async def test_a_thread_that_waits_is_woken_by_the_end() -> None:
    stream, got = Stream([b"a", b"b"], stop=1), list[bytes]()
    inflow = Inflow(aiter(stream))
    inflow.turn(ours=True)
    taking = asyncio.create_task(asyncio.to_thread(drained, inflow, got, 3 * LONG))
    await settled(lambda: stream.taken == 1)
    stream.go.set()
    await asyncio.wait_for(taking, LONG)
    assert got == [b"a", b"b"]
    await inflow.close()


async def test_a_thread_hears_what_broke_a_stream_off() -> None:
    inflow, got = Inflow(aiter(Stream([b"a"], fault=ProtocolError("broken")))), list[bytes]()
    with pytest.raises(ProtocolError, match="broken"):
        await asyncio.to_thread(drained, inflow, got)
    assert got == [b"a"]
    await inflow.close()


async def test_a_thread_waits_no_longer_than_it_is_told_to() -> None:
    stream = Stream([b"a"] * 2, stop=1)
    inflow = Inflow(aiter(stream))
    inflow.turn(ours=True)
    await settled(lambda: stream.taken == 1)
    began = time.monotonic()
    assert await asyncio.wait_for(asyncio.to_thread(inflow.take, 0.05), LONG) == [b"a"]
    assert time.monotonic() - began >= 0.05
    await inflow.close()


async def test_a_last_frame_that_comes_while_a_thread_looks_is_not_lost() -> None:
    stream = Stream([b"last"], stop=0)
    inflow = Inflow(aiter(stream))

    class Watched(threading.Condition):
        """Has the stream end as soon as it is left."""

        def __exit__(self, *_: object) -> None:
            super().__exit__(None, None, None)
            if self is not inflow._changed:
                return
            inflow._changed = threading.Condition()
            asyncio.run_coroutine_threadsafe(self.end(), loop).result(LONG)

        async def end(self) -> None:
            inflow.turn(ours=True)
            stream.go.set()
            await settled(lambda: inflow._over)

    loop, inflow._changed = asyncio.get_running_loop(), Watched()
    assert await asyncio.to_thread(inflow.take) == []
    assert inflow.take() == [b"last"]
    assert inflow.take() is None
    await inflow.close()


async def test_reading_goes_on_when_a_thread_has_made_room() -> None:
    stream = Stream([BIG] * 9)
    inflow = Inflow(aiter(stream))
    inflow.turn(ours=True)
    await settled(lambda: stream.taken == 3)
    assert await asyncio.to_thread(inflow.take) == [BIG] * 3
    await settled(lambda: stream.taken == 6)
    assert stream.taken == 6
    await inflow.close()
