"""The control stream: greeted, kept alive, opened again, and ended by one answer only."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from grpc.aio._call import StreamStreamCall

from fedscale import files, identity
from fedscale.clock import ManualClock
from fedscale.errors import AccessDenied, Cause, ConfigError, Unreachable
from fedscale.learner import Phase
from fedscale.proto.v1 import node_pb2
from fedscale.wire.convert import Key, key_to_proto, told_to_proto
from fedscale.wire.limits import TOLD_PART
from fedscale_client import connection, declarations
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome
from fedscale_client.masking import Masking
from fedscale_client.node import run
from tests.client.conftest import LEARNER, Running, Start, write_csv
from tests.client.coordinator import FEDERATION, PATIENCE, Coordinator, plan_text, until


async def test_a_node_greets_and_shows_life(coordinator: Coordinator, start: Start) -> None:
    async with start() as node:
        session = await coordinator.connected()
        assert (session.node, list(session.hello.datasets), session.hello.version) == ("mercy", ["heart"], "0.1.0")
        await until(lambda: session.kinds().count("heartbeat") >= 2)
        assert node.events("connected") == [{"event": "connected", "node": "mercy", "datasets": ["heart"]}]
    await until(lambda: not session.open)


async def test_a_silent_server_is_left(coordinator: Coordinator, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.4)
    async with start() as node:
        await coordinator.connected()
        coordinator.silent = True
        await coordinator.connected(2)
        monkeypatch.setattr(connection, "SILENCE_SECONDS", 60.0)  # a server that speaks again is not left, on however slow a machine
        assert "does not answer" in node.events("disconnected")[0]["error"]
        assert 0.05 <= node.events("disconnected")[0]["retry_seconds"] <= 0.2
        await until(lambda: not coordinator.sessions[0].open)
        coordinator.silent = False
        await until(lambda: coordinator.session.kinds().count("heartbeat") >= 1)


async def test_a_server_that_ends_the_stream_is_called_again(coordinator: Coordinator, start: Start) -> None:
    async with start() as node:
        (await coordinator.connected()).outbox.put_nowait(None)
        await coordinator.connected(2)
        assert "ended the connection" in node.events("disconnected")[0]["error"]


async def test_a_server_that_comes_later(coordinator: Coordinator, start: Start) -> None:
    await coordinator.stop()
    async with start() as node:
        await until(lambda: len(node.events("disconnected")) >= 2)
        assert "nothing listens there" in node.events("disconnected")[0]["error"]
        await coordinator.start()
        assert (await coordinator.connected()).open


async def test_a_call_that_fails_before_the_greeting_was_written_is_tried_again(
    coordinator: Coordinator, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is slow to speak while its server goes away loses the stream, and not its life."""
    write = StreamStreamCall.write

    async def late(call: Any, message: Any) -> None:
        while not call.done():
            await asyncio.sleep(0.01)
        await write(call, message)

    await coordinator.stop()
    async with start() as node:
        with monkeypatch.context() as patched:
            patched.setattr(StreamStreamCall, "write", late)
            await until(lambda: len(node.events("disconnected")) >= 2)
        assert "nothing listens there" in node.events("disconnected")[0]["error"]
        await coordinator.start()
        assert (await coordinator.connected()).open


async def test_a_node_turns_to_the_coordinator_that_leads(coordinator: Coordinator, home: NodeHome, start: Start) -> None:
    other = Coordinator()
    other.follow(coordinator)
    async with other:
        coordinator.told = [coordinator.address, other.address]
        async with start() as node:
            await coordinator.connected()
            await until(lambda: [server.address for server in home.servers()] == [coordinator.address, other.address])
            coordinator.refuse = Unreachable("this coordinator stands by")
            coordinator.session.outbox.put_nowait(None)
            await other.connected()
            other.refuse, coordinator.refuse = Unreachable("this coordinator stands by"), None
            other.session.outbox.put_nowait(None)
            await coordinator.connected(2)
            assert not node.task.done()


async def test_a_server_of_another_federation_gets_no_greeting(coordinator: Coordinator, home: NodeHome, start: Start) -> None:
    other = identity.new_authority(FEDERATION, datetime.now(UTC))
    files.write(home.authority_file, identity.certificate_pem(other.certificate))
    async with start() as node:
        await until(lambda: len(node.events("disconnected")) >= 2)
        assert "certificate is not the federation's" in node.events("disconnected")[0]["error"]
    assert coordinator.sessions == []


async def test_a_revoked_node_stops(coordinator: Coordinator, home: NodeHome) -> None:
    coordinator.refuse = AccessDenied("node 'mercy' was revoked")
    with pytest.raises(AccessDenied, match=r"does not accept this node \(node 'mercy' was revoked\).*new ticket") as caught:
        await asyncio.wait_for(run(home, on_event=lambda _: None), PATIENCE)
    assert caught.value.exit_code == 4


async def test_a_node_that_is_revoked_while_connected_stops(coordinator: Coordinator, start: Start) -> None:
    async with start() as node:
        session = await coordinator.connected()
        coordinator.refuse = AccessDenied("revoked")
        session.outbox.put_nowait(None)
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(node.task, PATIENCE)
        assert isinstance(caught.value.exceptions[0], AccessDenied)
        assert node.told[-1]["event"] == "stopped"


async def test_an_expired_certificate_is_not_shown_to_anybody(coordinator: Coordinator, home: NodeHome) -> None:
    clock = ManualClock(datetime.now(UTC) + timedelta(days=3))
    with pytest.raises(AccessDenied, match="certificate has expired"):
        await asyncio.wait_for(run(home, on_event=lambda _: None, clock=clock), PATIENCE)
    assert coordinator.sessions == []


async def test_a_key_that_does_not_fit(coordinator: Coordinator, home: NodeHome) -> None:
    files.write(home.key_file, identity.key_pem(identity.new_key()))
    with pytest.raises(ConfigError, match="does not belong to its certificate"):
        await asyncio.wait_for(run(home, on_event=lambda _: None), PATIENCE)


async def test_a_new_dataset_is_offered_at_once(coordinator: Coordinator, home: NodeHome, tmp_path: Path, start: Start) -> None:
    async with start() as node:
        await coordinator.connected()
        declarations.add(home, "lung", Declaration(kind="csv", path=str(write_csv(tmp_path / "lung.csv")), label="y"))
        session = await coordinator.connected(2)
        assert list(session.hello.datasets) == ["heart", "lung"]
        assert "datasets of this site have changed" in node.events("disconnected")[0]["error"]
        home.datasets_file.write_text("[broken")
        await until(lambda: node.events("datasets not read"))
        assert session.open


async def test_a_server_that_does_not_greet(coordinator: Coordinator, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_pb2, "Welcome", lambda **_: None)
    async with start() as node:
        await until(lambda: node.events("disconnected"))
        assert "did not greet" in node.events("disconnected")[0]["error"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"plan": "nonsense"}, "not valid TOML"),
        ({"plan": plan_text(), "model": "0" * 64}, "lacks the model, or carries one"),
        ({"plan": plan_text(), "schema": "[]", "model": ""}, "lacks the model, or carries one"),
        ({"plan": plan_text(), "schema": "{", "model": "0" * 64}, "schema is malformed"),
    ],
)
async def test_an_assignment_that_makes_no_sense(coordinator: Coordinator, start: Start, fields: dict[str, str], words: str) -> None:
    phase = Phase.INIT if "schema" not in fields else Phase.TRAIN
    async with start():
        session = await coordinator.connected()
        said: dict[str, Any] = dict(fields)
        message = node_pb2.Assignment(key=key_to_proto(("r", phase, 1)), bundle="0" * 64, terms=1, deadline_seconds=9, **said)
        session.outbox.put_nowait(node_pb2.ServerMessage(assignment=message))
        failure = await coordinator.failure(("r", phase, 1))
        assert failure.cause is Cause.REJECTED
        assert words in failure.what
        assert "releases" in failure.hint


async def test_a_task_of_an_unknown_kind_ends_the_stream_only(coordinator: Coordinator, start: Start) -> None:
    async with start() as node:
        session = await coordinator.connected()
        key = node_pb2.TaskKey(run="r", phase="conquer", number=1)
        session.outbox.put_nowait(node_pb2.ServerMessage(assignment=node_pb2.Assignment(key=key)))
        await coordinator.connected(2)
        assert "unknown phase" in node.events("disconnected")[0]["error"]


async def test_without_a_deadline_the_plans_holds(coordinator: Coordinator, tmp_path: Path, start: Start) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start():
        await coordinator.connected()
        key, layout = coordinator.assign(app, deadline=0.0)
        assert (await coordinator.words(key, layout)).size == layout.length


async def test_what_is_said_without_a_stream_is_dropped(coordinator: Coordinator, start: Start) -> None:
    await coordinator.stop()
    async with start() as node:
        await until(lambda: node.events("disconnected"))
        node.node._connection.accept(("r", Phase.TRAIN, 1))
        await coordinator.start()
        session = await coordinator.connected()
        await until(session.kinds)
        assert session.kinds()[0] == "heartbeat"


async def test_a_queue_that_is_full_drops_progress(coordinator: Coordinator, start: Start) -> None:
    async with start() as node:
        assert isinstance(node, Running)
        session = await coordinator.connected()
        await until(lambda: node.node._connection._outbox is not None)
        for number in range(connection.OUTBOX + 50):
            node.node._connection.progress(("r", Phase.TRAIN, number), 0.5)
        await until(lambda: session.kinds().count("heartbeat") >= 1)
        assert session.kinds().count("progress") == connection.OUTBOX


async def test_a_message_in_parts_is_heard_as_one_and_a_broken_one_not_at_all(
    coordinator: Coordinator, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[Key, str, bytes]] = []

    async def told(_: Masking, *message: Any) -> None:
        heard.append(message)

    monkeypatch.setattr(Masking, "told", told)
    key, data = ("run-1", Phase.TRAIN, 3), bytes(range(251)) * (3 * TOLD_PART // 251)
    parts = [node_pb2.ServerMessage(told=part) for part in told_to_proto(key, "agreement", data)]
    assert len(parts) == 3
    async with start():
        for message in (*parts[:2], None):
            (await coordinator.connected()).outbox.put_nowait(message)
        for message in (*parts, *short("opening", key)):
            (await coordinator.connected(2)).outbox.put_nowait(message)
        await until(lambda: len(heard) == 2)
    assert heard == [(key, "agreement", data), (key, "opening", b"short")]


def short(step: str, key: Key) -> list[node_pb2.ServerMessage]:
    """A short message as a server sends it."""
    return [node_pb2.ServerMessage(told=part) for part in told_to_proto(key, step, b"short")]
