"""Frames read ahead of the disk: all of them, in order, never more than there is room for, and the end comes last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from fedscale.errors import ProtocolError
from fedscale_server.inflow import AHEAD, Inflow

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
