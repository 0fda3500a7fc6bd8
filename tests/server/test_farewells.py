"""Sites hear that a led run is over, whoever was killed or away when it ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fedscale.proto.v1 import control_pb2 as pb
from fedscale_server import farewells
from fedscale_server.farewells import Farewells
from fedscale_server.sessions import Session, Sessions
from fedscale_server.store.store import Store
from tests.server.running import Node, Running, plan_text, until
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


PRIVATE: dict[str, Any] = {
    "privacy": {"epsilon": 4.0, "delta": 1e-5, "clip": 1.0, "metrics": "exact"},
    "train": {"batch_size": 4},
    "clients": {"min_per_round": 9},
}


async def test_nodes_of_a_project_hear_at_once_that_a_private_run_is_over(server: Running) -> None:
    """It keeps room at them; of a run without privacy nobody keeps anything."""
    await server.admin.control.CreateProject(pb.CreateProjectRequest(name="other"))
    ada, zoe = await server.node("ada"), await server.node("zoe", "other")
    plain, private = await server.submit(plan_text(clients={"min_per_round": 9})), await server.submit(plan_text(**PRIVATE))
    for run in (plain, private):
        await server.engine.steer(run, "stop", "enough")
        await server.over(run)
    await until(lambda: ada.released)
    assert (ada.released, zoe.released) == ([(private, "message", 0)], [])


async def test_a_node_that_was_away_asks_for_the_ends_of_runs_and_is_told(server: Running) -> None:
    """After a restart, too; of a run that goes on it hears nothing, and of one that cannot ask it anything that it is over."""
    await server.admin.control.CreateProject(pb.CreateProjectRequest(name="other"))
    stopped, open_one, other = [await server.submit(plan_text(**PRIVATE), project) for project in ("ward", "ward", "other")]
    await server.engine.steer(stopped, "stop", "enough")
    await server.over(stopped)
    await server.restart()
    ada = await server.node("ada", connect=False)
    asked = [open_one, stopped, other, "of another server", stopped[:-2]]
    await ada.connect(runs=asked)
    await until(lambda: len(ada.released) == 4)
    assert [run for run, phase, number in ada.released if (phase, number) == ("message", 0)] == asked[1:]


async def test_no_node_makes_the_server_look_up_more_runs_than_it_may_keep(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewells, "MOST_RUNS", 3)
    ada = await server.node("ada", connect=False)
    await ada.connect(runs=[f"run-{number}" for number in range(9)])
    await until(lambda: len(ada.released) == 3)
    run, _ = await server.begun(ada)
    assert (len(ada.released), bool(run)) == (3, True)
