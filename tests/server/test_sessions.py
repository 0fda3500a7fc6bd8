"""Who is connected, and what happens to messages for those who are not, or do not read."""

from __future__ import annotations

import asyncio
import time

from fedscale.proto.v1 import node_pb2 as pb
from fedscale_server.sessions import QUEUE, Session, Sessions, Watch
from tests.server.running import soon

HELLO = pb.ServerMessage(heartbeat=pb.Heartbeat())


def session(node: str = "ada", project: str = "ward", *datasets: str) -> Session:
    return Session(node, project, frozenset(datasets or ("default",)), "9")


def drained(one: Session) -> list[pb.ServerMessage | None]:
    return [one.outbox.get_nowait() for _ in range(one.outbox.qsize())]


async def test_messages_go_to_whoever_is_connected() -> None:
    sessions, ada = Sessions(), session()
    assert not sessions.send("ada", HELLO)
    sessions.add(ada)
    assert sessions.send("ada", HELLO)
    assert drained(ada) == [HELLO]
    assert sessions.get("ada") is ada
    assert sessions.get("ben") is None


async def test_a_node_has_one_life() -> None:
    sessions, old, new = Sessions(), session(), session()
    sessions.add(old)
    sessions.send("ada", HELLO)
    sessions.add(new)
    assert drained(old) == [None]
    assert not sessions.remove(old)
    assert sessions.get("ada") is new
    assert sessions.remove(new)
    assert sessions.get("ada") is None
    assert not sessions.remove(new)


async def test_a_node_that_does_not_read_is_closed_and_not_waited_for() -> None:
    sessions, ada = Sessions(), session()
    sessions.add(ada)
    assert all(sessions.send("ada", HELLO) for _ in range(QUEUE))
    assert not sessions.send("ada", HELLO)
    assert drained(ada) == [None]


async def test_closing_ends_the_stream_of_one_or_of_all() -> None:
    sessions, ada, ben = Sessions(), session("ada"), session("ben")
    sessions.add(ada)
    sessions.add(ben)
    sessions.close("ada")
    sessions.close("nobody")
    assert drained(ada) == [None]
    assert drained(ben) == []
    sessions.close_all()
    assert drained(ben) == [None]
    assert not sessions.remove(ben)


async def test_eligible_is_who_belongs_to_the_project_and_offers_the_dataset() -> None:
    sessions = Sessions()
    for one in (session("cyd"), session("ada", "ward", "default", "old"), session("ben", "lab"), session("dee", "ward", "old")):
        sessions.add(one)
    assert sessions.eligible("ward", "default") == ("ada", "cyd")
    assert sessions.eligible("ward", "old") == ("ada", "dee")
    assert sessions.eligible("ward", "none") == ()


async def test_who_says_nothing_is_noticed_once() -> None:
    times, began = asyncio.Queue[float](), time.monotonic()
    watch = Watch(0.2, lambda: times.put_nowait(time.monotonic()))
    assert await soon(times.get()) - began >= 0.2
    await asyncio.sleep(0.3)
    assert times.empty()
    watch.stop()


async def test_a_server_that_was_held_up_holds_it_against_nobody() -> None:
    """Everything that nodes have said meanwhile waits to be read when it wakes."""
    silent = asyncio.Event()
    watch = Watch(0.4, silent.set)
    for _ in range(3):
        time.sleep(0.6)  # noqa: ASYNC251 - the event loop is what is held up
        await asyncio.sleep(0)
        with watch.heard():
            assert not silent.is_set()
    await soon(silent.wait())


async def test_what_a_node_has_said_may_take_long_to_deal_with() -> None:
    silent = asyncio.Event()
    watch = Watch(0.05, silent.set)
    with watch.heard():
        await asyncio.sleep(0.3)
    assert not silent.is_set()
    watch.stop()
    await asyncio.sleep(0.2)
    assert not silent.is_set()
