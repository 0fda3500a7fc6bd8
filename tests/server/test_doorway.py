"""Uploads are let in while there is room, in order; whoever does not come, or comes slowly, keeps nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from unittest.mock import Mock

import pytest

from fedscale_server import doorway
from fedscale_server.doorway import Doorway, Who

LONG, SHORT = 3600.0, 0.01
ANN, BOB, CID, DEE = (("run", name) for name in ("ann", "bob", "cid", "dee"))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "PATIENCE_SECONDS", LONG)


async def let_in(entering: Awaitable[None]) -> bool:
    """Whether it is at last."""
    return bool((await asyncio.wait({asyncio.ensure_future(entering)}, timeout=60.0))[0])


async def outside(door: Doorway, *names: Who) -> list[asyncio.Task[None]]:
    """Tasks of those who have come in this order and are not let in."""
    tasks = [asyncio.create_task(door.enter(who)) for who in names]
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


@pytest.mark.usefixtures("patient")
async def test_those_outside_are_let_in_one_by_one_in_their_order() -> None:
    door = Doorway(2)
    assert await let_in(door.enter(ANN))
    assert await let_in(door.enter(BOB))
    third, fourth = await outside(door, CID, DEE)
    door.leave(ANN)
    assert await let_in(third)
    assert not fourth.done()
    door.leave(ANN)  # who is gone leaves nobody's place
    await outside(door, ANN)
    assert not fourth.done()
    door.leave(CID)
    assert await let_in(fourth)


async def test_who_does_not_come_loses_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "PATIENCE_SECONDS", SHORT)
    door = Doorway(1)
    for who in (ANN, BOB, CID):
        assert await let_in(door.enter(who))


async def test_who_waits_for_the_server_keeps_the_place_and_who_is_waited_for_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "PATIENCE_SECONDS", SHORT)
    door = Doorway(1)
    assert await let_in(door.enter(ANN))
    door.came(ANN)
    (waiting,) = await outside(door, BOB)
    await asyncio.sleep(10 * SHORT)
    assert not waiting.done()
    door.awaited(ANN, flowed=False)
    assert await let_in(waiting)


@pytest.mark.parametrize("flowed", [False, True])
async def test_patience_is_used_up_unless_the_stream_flows_again(monkeypatch: pytest.MonkeyPatch, *, flowed: bool) -> None:
    """What is left of it is all there is for one that brings a little now and then."""
    monkeypatch.setattr(doorway, "PATIENCE_SECONDS", LONG)
    door, loop = Doorway(1), asyncio.get_running_loop()
    assert await let_in(door.enter(ANN))
    began = loop.time()
    monkeypatch.setattr(loop, "time", lambda: began + LONG - 1.0)
    door.came(ANN)
    monkeypatch.setattr(loop, "time", lambda: began)
    waited = Mock(wraps=loop.call_later)
    monkeypatch.setattr(loop, "call_later", waited)
    door.awaited(ANN, flowed=flowed)
    assert waited.call_args.args[0] == pytest.approx(LONG if flowed else 1.0, abs=0.1)


@pytest.mark.usefixtures("patient")
async def test_who_asks_twice_takes_one_place() -> None:
    door = Doorway(2)
    assert await let_in(door.enter(ANN))
    assert await let_in(door.enter(ANN))
    assert await let_in(door.enter(BOB))
    one, other = await outside(door, CID, CID)
    door.leave(ANN)
    assert await let_in(one)
    door.leave(BOB)
    assert await let_in(other)
    assert await let_in(door.enter(DEE))


@pytest.mark.usefixtures("patient")
async def test_who_goes_away_while_waiting_leaves_no_hole() -> None:
    door = Doorway(1)
    assert await let_in(door.enter(ANN))
    gone, waiting = await outside(door, BOB, CID)
    gone.cancel()
    door.leave(ANN)
    assert await let_in(waiting)
    await outside(door, DEE)


@pytest.mark.usefixtures("patient")
async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the sender takes the server for dead it may send, and takes no place for that."""
    monkeypatch.setattr(doorway, "MOST_SECONDS", SHORT)
    door = Doorway(1)
    assert await let_in(door.enter(ANN))
    assert await let_in(door.enter(BOB))
    door.leave(BOB)
    door.leave(ANN)
    assert await let_in(door.enter(CID))
    assert await let_in(door.enter(DEE))


async def test_strangers_are_nobody() -> None:
    door = Doorway(1)
    door.came(ANN)
    door.awaited(ANN, flowed=True)
    door.leave(ANN)
    assert await let_in(door.enter(BOB))
    door.came(BOB)
    await outside(door, ANN)
