"""What the coordinator sees of the sites of a round in passing, and whom it tells."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import node_pb2
from fedscale.wire.convert import key_to_proto
from fedscale_server import logbook
from fedscale_server.driver import Driver
from tests.server.running import PATIENCE, Ask, Node, Running, plan_text, soon, until


def say(node: Node, ask: Ask, stage: str, number: int = 1) -> None:
    """A node says what it begins with."""
    key = (ask.key[0], ask.key[1], number)
    node.say(node_pb2.NodeMessage(progress=node_pb2.Progress(key=key_to_proto(key), stage=stage)))


def marks(server: Running, run: str) -> dict[str, list[tuple[str, float]]]:
    """The lanes of the open round as the coordinator has them; none while nobody drives the run."""
    driver = server.engine.driver(run)
    return driver.book.lanes.marks if isinstance(driver, Driver) else {}


def closed(server: Running, run: str) -> int:
    """How many phases are closed; more than any once the run is over."""
    driver = server.engine.driver(run)
    return len(driver.book.rounds) if isinstance(driver, Driver) else 1000


async def lanes(server: Running, run: str) -> dict[str, list[str]]:
    """The stages of each site as somebody gets them who begins to watch."""
    watching = server.admin.control.WatchRun(pb.WatchRunRequest(run=run))
    try:
        while True:
            event: Any = await soon(watching.read())
            if event.kind == "lanes":
                return {site: [stage for stage, _ in lane] for site, lane in json.loads(event.detail)["lanes"].items()}
    finally:
        watching.cancel()


async def kept(server: Running, run: str) -> list[dict[str, list[Any]]]:
    """The lanes of each phase in the record of a run that is over."""
    _, record = await server.over(run)
    return [row["lanes"] for row in record["rounds"]]


async def test_what_is_fetched_and_uploaded_is_seen_and_what_is_begun_is_told(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (ask, other) = await server.begun(ada, ben, clients={"min_per_round": 1, "wait_for": 2})
    assert await lanes(server, run) == {"ada": ["wait"], "ben": ["wait"]}
    await ada.fetch(ask.task.model)
    say(ada, ask, "train")
    await until(lambda: marks(server, run)["ada"][-1][0] == "train" or None)
    assert await lanes(server, run) == {"ada": ["wait", "download", "train"], "ben": ["wait"]}
    await ada.answer(ask)
    assert (await lanes(server, run))["ada"] == ["wait", "download", "train", "upload", "wait"]
    ben.fail(other.key)
    (seen,) = await kept(server, run)
    assert [stage for stage, _ in seen["ada"]][:4] == ["wait", "download", "train", "upload"]
    assert [stage for stage, _ in seen["ben"]] == ["wait", "failed"]


async def test_a_node_tells_of_its_own_task_and_of_nothing_that_others_can_see(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (ask, _) = await server.begun(ada, ben)
    for stage, number in (("upload", 1), ("failed", 1), ("evaluate", 1), ("<script>", 1), ("train", 2)):
        say(ada, ask, stage, number)
    say(ada, ask, "mask")
    await until(lambda: marks(server, run)["ada"][-1][0] == "mask" or None)
    assert await lanes(server, run) == {"ada": ["wait", "mask"], "ben": ["wait"]}


async def test_watchers_are_told_each_stage_once(server: Running) -> None:
    (ada,) = await server.nodes("ada")
    run, (ask,) = await server.begun(ada)
    told = []
    async for event in server.admin.control.WatchRun(pb.WatchRunRequest(run=run), timeout=PATIENCE):
        told.append(event)
        if event.kind == "lanes":
            for _ in range(3):
                say(ada, ask, "train")
        elif event.kind == "stage" and json.loads(event.detail)["stage"] == "train":
            await ada.answer(ask)
    assert [(event.node, json.loads(event.detail)["stage"]) for event in told if event.kind == "stage"] == [("ada", "train"), ("ada", "upload")]
    end = next(json.loads(event.detail) for event in told if event.kind == "closed")
    assert [stage for stage, _ in end["lanes"]["ada"]] == ["wait", "train", "upload", "wait"]


async def test_a_restart_keeps_what_the_journal_knows(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (ask, _) = await server.begun(ada, ben)
    await ada.answer(ask)
    await server.restart()
    server.people.remove(server.admin)
    found = await until(lambda: marks(server, run))
    assert [stage for stage, _ in found["ada"]] == ["wait"], "that it uploaded was seen in passing"
    assert set(found) == {"ada", "ben"}


@pytest.mark.parametrize("limit", ["DRAWN", "MOST_LANES"])
async def test_only_the_last_rounds_keep_their_lanes_also_after_a_restart(server: Running, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(logbook, limit, 2)
    (ada,) = await server.nodes("ada")
    run = await server.submit(plan_text(rounds=5))
    ada.work()
    await until(lambda: closed(server, run) >= 3 or None)
    await server.restart()
    server.people.remove(server.admin)
    ada.channel = ada.credentials.channel(server.ready.address)
    await ada.connect()
    ada.work()
    assert [bool(drawn) for drawn in await kept(server, run)] == [False, False, False, True, True]


async def test_who_begins_to_watch_while_a_round_opens_is_told_its_opening_first(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    (ada,) = await server.nodes("ada")
    run, (ask,) = await server.begun(ada, strategy={"rounds": 2})
    journal, read, opened = server.engine.store.journal, threading.Event(), threading.Event()

    def slow(*given: Any) -> Any:
        page = journal(*given)
        if not page:
            read.set()
            assert opened.wait(PATIENCE)
        return page

    monkeypatch.setattr(server.engine.store, "journal", slow)
    watching = server.admin.control.WatchRun(pb.WatchRunRequest(run=run), timeout=PATIENCE)
    await until(lambda: read.is_set() or None)
    await ada.answer(ask)
    say(ada, await ada.ask("train"), "train", 2)
    await until(lambda: marks(server, run)["ada"][-1][0] == "train" or None)
    opened.set()
    told: list[Any] = []
    while "lanes" not in [event.kind for event in told]:
        told.append(await soon(watching.read()))
    watching.cancel()
    assert [(event.kind, event.number) for event in told if event.kind in ("opened", "lanes")] == [("opened", 1), ("opened", 2), ("lanes", 2)]
    assert [stage for stage, _ in json.loads(told[-1].detail)["lanes"]["ada"]] == ["wait", "train"]
