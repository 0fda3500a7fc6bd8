"""Sites hear that a led run is over, whoever was killed or away when it ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fedscale_server import farewells
from fedscale_server.farewells import Farewells
from fedscale_server.sessions import Session, Sessions
from fedscale_server.store.store import Store
from tests.server.running import Node, Running, until
from tests.server.samples import NOW
from tests.server.test_courier import answered, ended_by_halves


async def _back(server: Running, node: Node) -> None:
    """A node that connects again, with nothing in its memory."""
    node.released.clear()
    node.channel = node.credentials.channel(server.ready.address)
    await node.connect()


def _node(server: Running, name: str = "ada") -> Node:
    return next(person for person in server.people if isinstance(person, Node) and person.name == name)


async def test_a_coordinator_that_is_killed_between_the_end_and_the_farewell_says_it_when_it_is_back(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, _ = await answered(server)
    with monkeypatch.context() as patched:
        patched.setattr(Farewells, "over", lambda *_: None)  # it died here
        assert (await leader.conclude()).status == "completed"
        await server.restart()
    node = _node(server)
    assert (leader.run, "message", 0) not in node.released
    await _back(server, node)
    await until(lambda: (leader.run, "message", 0) in node.released)


async def test_a_coordinator_that_is_killed_before_the_end_is_written_down_says_it_too(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = await ended_by_halves(server, monkeypatch)
    await _back(server, _node(server))
    await until(lambda: (leader.run, "message", 0) in _node(server).released)
    assert (await server.over(leader.run))[1]["status"] == "completed"


async def test_a_node_that_was_away_hears_it_when_it_comes_and_strangers_do_not(server: Running) -> None:
    leader, _ = await answered(server)
    node = _node(server)
    await node.leave()
    await until(lambda: server.engine.sessions.get("ada") is None)
    assert (await leader.conclude()).status == "completed"
    for name in ("ada", "eve"):
        await (server.node(name) if name == "eve" else _back(server, node))
    await until(lambda: (leader.run, "message", 0) in node.released)
    other, _ = await server.begun(_node(server, "eve"))
    assert (_node(server, "eve").released, other != leader.run) == ([], True)


def _ended(store: Store, run: str, days: float, *members: str) -> None:
    """A led run that ended so many days ago."""
    at = NOW - timedelta(days=days)
    store.create_run(run, "ward", run, "plan", "hash", "bundle", "", at)
    store.append(run, "roster", {"event": {"nodes": list(members)}}, at, "roster")
    store.finish(run, "completed", "", {}, at)


class Heard:
    """A node that is connected, and what it was told."""

    def __init__(self, sessions: Sessions, name: str) -> None:
        self.session = Session(name, "ward", frozenset(), "")
        sessions.add(self.session)

    @property
    def runs(self) -> list[str]:
        told: list[Any] = [self.session.outbox.get_nowait() for _ in range(self.session.outbox.qsize())]
        return [message.release.key.run for message in told if message.release.key.number == 0]


def test_only_what_a_node_may_remember_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the last 90 days, the newest of them, and only those in which it took part."""
    monkeypatch.setattr(farewells, "MOST_RUNS", 3)
    for run, days, members in (("old", 91, "ab"), ("four", 4, "ab"), ("three", 3, "a"), ("two", 2, "b"), ("one", 1, "ab")):
        _ended(store, run, days, *members)
    store.create_run("open", "ward", "open", "plan", "hash", "bundle", "", NOW)
    store.append("open", "roster", {"event": {"nodes": ["a", "b"]}}, NOW, "roster")
    sessions = Sessions()
    bids, ann, bob = Farewells(sessions), Heard(sessions, "a"), Heard(sessions, "b")
    bids.load(store, NOW)
    bids.greet("a")
    bids.greet("b")
    assert (ann.runs, bob.runs) == (["three", "one"], ["two", "one"])
    bids.over("open", ["a"])
    assert (ann.runs, bob.runs) == (["open"], []), "at once, and only to those who took part"
    bids.greet("a")
    assert ann.runs == ["one", "open"], "the oldest one has made room"
