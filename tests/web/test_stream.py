"""Server-sent events: nothing is lost and nothing comes twice, over restarts too; and they end with the login."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from fedscale.identity import Role
from fedscale.proto.v1 import control_pb2 as pb
from fedscale_server.answers import Project
from fedscale_server.web import stream
from tests.server.running import Counting, plan_text, soon, until
from tests.web.conftest import Front, Guest


async def told(guest: Guest, path: str, last: int | None = None) -> AsyncIterator[dict[str, Any]]:
    """What a stream tells; each message with its id, and the last one as ``over``."""
    headers = {} if last is None else {"last-event-id": str(last)}
    async with guest.http.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        message: dict[str, Any] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line and name:
                message[name] = value
            elif "data" in message:
                yield {"id": int(message.get("id", 0)), "over": message.get("event") == "over", **json.loads(message["data"])}
                message = {}


async def all_told(guest: Guest, path: str, last: int | None = None) -> list[dict[str, Any]]:
    return [message async for message in told(guest, path, last)]


async def test_a_stream_goes_on_behind_the_last_event_seen(front: Front) -> None:
    ada = await front.running.node("ada")
    run = await front.running.submit(plan_text(rounds=3, every=1))
    ada.work(Counting())
    guest = await front.person(Role.AUDITOR)
    path = f"/api/runs/{run}/events"
    everything = [event for event in await soon(all_told(guest, path), 60) if event["id"] or event["over"]]
    journal = [event async for event in front.running.admin.control.WatchRun(pb.WatchRunRequest(run=run))]
    assert [event["id"] for event in everything[:-1]] == list(range(1, len(journal) + 1)) == [event["sequence"] for event in everything[:-1]]
    assert everything[-1]["over"]
    assert [(e["kind"], e["node"], e["phase"], e["number"], e["detail"]) for e in everything[:-1]] == [
        (e.kind, e.node, e.phase, e.number, json.loads(e.detail)) for e in journal
    ]
    for last in (0, 1, len(journal) // 2, len(journal)):
        assert await soon(all_told(guest, path, last)) == everything[last:]
        assert await soon(all_told(guest, f"{path}?after={last}")) == everything[last:]
    assert await soon(all_told(guest, f"{path}?after=2", 5)) == everything[5:], "what the browser remembers wins over where the page began"
    assert await soon(all_told(guest, f"{path}?after=5", 2)) == everything[5:]


async def test_a_watcher_misses_nothing_when_the_server_comes_back(front: Front) -> None:
    ada = await front.running.node("ada")
    run, (ask,) = await front.running.begun(ada, rounds=2)
    guest = await front.person(Role.AUDITOR)
    path, seen = f"/api/runs/{run}/events", list[int]()

    async def watch() -> None:
        async for event in told(guest, path, seen[-1] if seen else None):
            if event["id"]:
                seen.append(event["id"])

    watching = asyncio.create_task(watch())
    await until(lambda: len(seen) >= 3)
    await front.running.restart()
    await soon(watching)
    front.running.people.remove(front.running.admin)
    before = len(seen)
    ada.channel = ada.credentials.channel(front.running.ready.address)
    await ada.connect()
    ada.work(Counting())
    await soon(watch(), 60)
    assert before >= 3
    assert seen == list(range(1, len(seen) + 1))
    assert ask.task.number == 1


async def test_a_stream_ends_when_its_reader_has_logged_out(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 0.05)
    monkeypatch.setattr(stream, "LOOK_SECONDS", 0.05)
    ada = await front.running.node("ada")
    run, _ = await front.running.begun(ada)
    guest, other = await front.person(Role.COORDINATOR), await front.person(Role.COORDINATOR)
    seen, states = list[dict[str, Any]](), list[dict[str, Any]]()

    async def watch(path: str, into: list[dict[str, Any]]) -> None:
        async for message in told(guest, path):
            into.append(message)  # noqa: PERF401 - it is looked at while it grows

    watching = [asyncio.create_task(watch(f"/api/runs/{run}/events", seen)), asyncio.create_task(watch("/api/events", states))]
    await until(lambda: states and "opened" in [event.get("kind") for event in seen])
    assert len(_feed(front, run)._watchers) == 1
    await guest.ask("DELETE", "/api/session")
    await soon(asyncio.gather(*watching))
    assert [event["kind"] for event in seen if event["id"]][-1] == "opened"
    assert not any(event["over"] for event in seen)
    await until(lambda: not _feed(front, run)._watchers)
    assert (await other.http.get("/api/session")).status_code == 200


async def test_a_stream_that_never_falls_silent_ends_with_the_login_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 0.05)

    monkeypatch.setattr(stream, "LOOK_SECONDS", 0.005)

    class Busy:
        async def status(self) -> Project:
            return Project("trial", next(numbers), 0)

        async def watch(self, run: str, after: int) -> AsyncGenerator[pb.RunEvent, None]:
            while True:
                await asyncio.sleep(0.005)
                yield pb.RunEvent(kind=f"{run}/{after}")

    numbers = itertools.count()

    async def logged_out() -> bool:
        return False

    busy: Any = Busy()
    frames = await soon(_all(stream.run_events(busy, "trial", 7, logged_out)))
    assert frames[0] == stream.RETRY
    assert {b"trial/7" in frame for frame in frames[1:]} <= {True}
    assert stream.OVER not in frames
    assert await soon(_all(stream.changes(busy, logged_out, asyncio.Event()))) == [stream.RETRY]


async def _all(frames: AsyncIterator[bytes]) -> list[bytes]:
    return [frame async for frame in frames]


def _feed(front: Front, run: str) -> Any:
    driver = front.running.engine.driver(run)
    assert driver is not None
    return driver.feed


async def test_whoever_closes_the_tab_is_forgotten(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 0.05)
    ada = await front.running.node("ada")
    run, _ = await front.running.begun(ada)
    guest = await front.person(Role.AUDITOR)
    events = told(guest, f"/api/runs/{run}/events")
    assert (await soon(anext(events)))["id"] == 1
    assert len(_feed(front, run)._watchers) == 1
    await events.aclose()  # type: ignore[attr-defined]
    await until(lambda: not _feed(front, run)._watchers)


async def test_the_overview_hears_of_changes_and_of_nothing_else(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LOOK_SECONDS", 0.02)
    guest = await front.person(Role.AUDITOR)
    states: list[dict[str, Any]] = []

    async def watch() -> None:
        async for state in told(guest, "/api/events"):
            states.append(state)  # noqa: PERF401 - it is looked at while it grows

    watching = asyncio.create_task(watch())
    await until(lambda: states)
    await asyncio.sleep(0.2)
    assert len(states) == 1
    ada = await front.running.node("ada")
    await until(lambda: states[-1]["nodes"] and states[-1]["nodes"][0]["connected"])
    await front.running.begun(ada)
    await until(lambda: states[-1]["runs"] and states[-1]["runs"][0]["number"] == 1)
    await front.running.stop()
    await soon(watching)


def test_an_event_is_one_message_whatever_its_words() -> None:
    detail = json.dumps({"what": "line\nbreak\r\n\u2028 and data: id: 7"})
    event = pb.RunEvent(sequence=4, at=1.5, kind="failed", node="ada", phase="train", number=2, detail=detail)
    text = stream.encoded(event).decode()
    assert text.startswith("id: 4\ndata: {")
    assert text.count("\n") == 3
    shown = json.loads(text.split("data: ", 1)[1])
    assert shown == {"sequence": 4, "at": 1.5, "kind": "failed", "node": "ada", "phase": "train", "number": 2, "detail": json.loads(detail)}
    assert stream.encoded(pb.RunEvent(kind="progress")).startswith(b"data: "), "what has no number is never the last thing seen"
