"""The control stream from the node's side: greetings, heartbeats, nonsense, and certificates."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import Cause, Conflict
from fedscale.identity import Role, new_key, new_request, serial_of
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import node_pb2, node_pb2_grpc
from fedscale.secagg.authority import claim
from fedscale.wire.convert import key_to_proto
from fedscale_client.rpc import error_of
from fedscale_server.services.node import MAX_DATASETS, _first
from tests.server.running import Node, Receipt, Running, plan_text, refusal, soon, until

BAD = grpc.StatusCode.INVALID_ARGUMENT


async def opening(node: Node, *messages: node_pb2.NodeMessage) -> grpc.aio.AioRpcError:
    """What a stream that begins with these messages ends with."""

    async def spoken() -> AsyncIterator[node_pb2.NodeMessage]:
        for message in messages:
            yield message
        await asyncio.sleep(60)

    async def heard() -> list[Any]:
        return [message async for message in node_pb2_grpc.NodeStub(node.channel).Connect(spoken())]

    return await refusal(heard())


OPENINGS = {
    "heartbeat": node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat()),
    "progress": node_pb2.NodeMessage(progress=node_pb2.Progress(fraction=1.0)),
    "nothing in it": node_pb2.NodeMessage(),
}


@pytest.mark.parametrize("first", OPENINGS)
async def test_a_control_stream_begins_with_hello(server: Running, first: str) -> None:
    ada = await server.node("ada", connect=False)
    error = await opening(ada, OPENINGS[first])
    assert (error.code(), error.details()) == (BAD, "node ada: a control stream must begin with Hello")
    assert server.engine.sessions.get("ada") is None
    await ada.connect()


def hello(identity: bytes) -> node_pb2.NodeMessage:
    return node_pb2.NodeMessage(hello=node_pb2.Hello(version="9", datasets=["default"], identity=identity))


@pytest.mark.parametrize("proof", [b"x", claim(Ed25519PrivateKey.generate(), "somebody else")], ids=["no proof", "another name"])
async def test_an_identity_key_must_be_proved(server: Running, proof: bytes) -> None:
    ada = await server.node("ada", connect=False)
    error = await opening(ada, hello(proof))
    assert error.code() == BAD
    assert "identity of node 'ada'" in (error.details() or "")
    assert server.engine.sessions.get("ada") is None


async def test_a_proved_identity_key_is_known_and_stays(server: Running) -> None:
    key = Ed25519PrivateKey.generate()
    ada = await server.node("ada", connect=False)
    call = node_pb2_grpc.NodeStub(ada.channel).Connect(spoken_once(hello(claim(key, "ada"))))
    await until(lambda: server.engine.sessions.get("ada"))
    assert server.engine.sessions.identities(("ada", "ben")) == {"ada": key.public_key().public_bytes_raw().hex()}
    call.cancel()
    error = await opening(ada, hello(claim(Ed25519PrivateKey.generate(), "ada")))
    assert "'ada' was known by another identity key" in (error.details() or "")


async def spoken_once(message: node_pb2.NodeMessage) -> AsyncIterator[node_pb2.NodeMessage]:
    yield message
    while True:
        await asyncio.sleep(0.5)
        yield node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat())


async def test_messages_of_secure_aggregation_that_nobody_waits_for_change_nothing(server: Running) -> None:
    ada = await server.node("ada")
    run = await server.submit(plan_text(clients={"min_per_round": 1}))
    ask = await ada.ask("init")
    for key in (ask.key, (run, ask.task.phase, 7), ("no such run", ask.task.phase, 0)):
        ada.say(node_pb2.NodeMessage(spoken=node_pb2.Spoken(key=key_to_proto(key), step="keys", data=b"?")))
    await ada.initialize(ask)
    train = await ada.ask("train")
    ada.say(node_pb2.NodeMessage(spoken=node_pb2.Spoken(key=key_to_proto(train.key), step="keys", data=b"?")))
    assert (await ada.answer(train)).verdict == Receipt.ACCEPTED


async def test_whoever_says_nothing_is_not_waited_for(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.services.node.SILENCE_SECONDS", 0.1)
    error = await opening(await server.node("ada", connect=False))
    assert (error.code(), error.details()) == (BAD, "node ada: a control stream must begin with Hello")


async def test_a_server_that_was_held_up_hears_who_has_greeted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds come at once after a restart: a greeting that waits to be read is not silence."""
    monkeypatch.setattr("fedscale_server.services.node.SILENCE_SECONDS", 0.2)
    said = asyncio.Queue[node_pb2.NodeMessage]()

    async def messages() -> AsyncIterator[node_pb2.NodeMessage]:
        while True:
            yield await said.get()

    hearing = asyncio.create_task(_first(messages()))
    for _ in range(3):
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - the event loop is what is held up
    said.put_nowait(hello(b""))
    assert await soon(hearing) == hello(b"")


async def test_bytes_that_are_no_message_end_the_stream(server: Running) -> None:
    ada = await server.node("ada", connect=False)

    async def junk() -> AsyncIterator[bytes]:
        yield b"\xff\xff\xff\xff junk"
        await asyncio.sleep(60)

    async def heard() -> list[Any]:
        call: Any = ada.channel.stream_stream("/fedscale.v1.Node/Connect")
        return [message async for message in call(junk())]

    assert (await refusal(heard())).code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, BAD)
    await ada.connect()


async def test_a_node_is_greeted_kept_warm_and_known(server: Running) -> None:
    ada = await server.node("ada", datasets=("default", "old"))
    welcome = ada.heard[0].welcome
    assert welcome.heartbeat_seconds == 1.0
    await until(lambda: any(m.WhichOneof("message") == "heartbeat" for m in ada.heard))
    [info] = (await server.admin.control.ListNodes(pb.ListNodesRequest(project="ward"))).nodes
    assert (info.name, info.project, info.connected, list(info.datasets), info.version, info.revoked) == (
        "ada", "ward", True, ["default", "old"], "9", False,
    )  # fmt: skip
    assert info.last_seen > 0
    await ada.leave()
    await until(lambda: server.engine.sessions.get("ada") is None)
    [info] = (await server.admin.control.ListNodes(pb.ListNodesRequest())).nodes
    assert (info.connected, list(info.datasets)) == (False, ["default", "old"])


async def test_only_names_that_a_plan_could_ask_for_are_kept(server: Running) -> None:
    await server.node("ada", datasets=("default", "", "x" * 64, "a\0b", "../etc", *(f"d{n}" for n in range(300))))
    session = server.engine.sessions.get("ada")
    assert session is not None
    assert session.datasets == {"default", *(f"d{n}" for n in range(MAX_DATASETS - 5))}


async def test_a_second_stream_of_a_node_takes_the_place_of_the_first(server: Running) -> None:
    ada = await server.node("ada")
    run, _ = await server.begun(ada)
    first = ada._tasks[0]
    ada._tasks = []
    again = Node("ada", ada.credentials, ada.credentials.channel(server.ready.address))
    server.people.append(again)
    await again.connect()
    await soon(first)
    ask = await again.ask("train")
    assert (await again.answer(ask, 2.0)).verdict == Receipt.ACCEPTED
    assert "lost" not in [e.kind for e in await server.events(run)]


async def test_a_node_that_leaves_politely_is_gone_at_once(server: Running) -> None:
    ada = await server.node("ada")
    assert ada._outbox is not None
    ada._outbox.put_nowait(None)
    await soon(ada._tasks[0])
    assert ada.ended is None
    await until(lambda: server.engine.sessions.get("ada") is None)


async def test_signs_of_life_reach_watchers_for_tasks_that_are_the_nodes_own(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    eve = await server.node("eve")
    driver = server.engine.driver(run)
    assert driver is not None
    watcher = driver.feed.watch()
    key = node_pb2.TaskKey(run=run, phase="train", number=1)
    for number in (0, 2):
        ada.say(node_pb2.NodeMessage(progress=node_pb2.Progress(key=node_pb2.TaskKey(run=run, phase="train", number=number), fraction=0.1)))
    eve.say(node_pb2.NodeMessage(progress=node_pb2.Progress(key=key, fraction=0.2)))
    ada.say(node_pb2.NodeMessage(accepted=node_pb2.Accepted(key=key)))
    for fraction in (0.123456, math.nan, -5.0, 7.0):
        ada.say(node_pb2.NodeMessage(progress=node_pb2.Progress(key=key, fraction=fraction)))
    seen = [await soon(watcher.get()) for _ in range(5)]
    assert all(isinstance(e, pb.RunEvent) and (e.sequence, e.node, e.phase, e.number) == (0, "ada", "train", 1) for e in seen)
    told = [(e.kind, json.loads(e.detail)) for e in seen if isinstance(e, pb.RunEvent)]
    assert told == [("accepted", {}), *(("progress", {"fraction": f}) for f in (0.1235, 0.0, 0.0, 1.0))]
    await ada.answer(ask, 1.0)


@pytest.mark.parametrize("kind", ["progress", "failed", "accepted"])
async def test_an_unknown_phase_ends_the_stream_and_no_run(server: Running, kind: str) -> None:
    ada = await server.node("ada", connect=False)
    await ada.connect(heartbeat=3.0)  # grpc.aio forgets why a stream ended when it is writing to it at that moment
    run, _ = await server.begun(ada)
    key = node_pb2.TaskKey(run=run, phase="attack", number=1)
    bodies: dict[str, Any] = {"progress": node_pb2.Progress(key=key), "failed": node_pb2.Failed(key=key), "accepted": node_pb2.Accepted(key=key)}
    ada.say(node_pb2.NodeMessage(**{kind: bodies[kind]}))
    await soon(ada._tasks[0])
    assert ada.ended is not None
    assert (ada.ended.code(), ada.ended.details()) == (BAD, "a task key names an unknown phase")
    await ada.connect()
    assert (await ada.answer(await ada.ask("train"), 2.0)).verdict == Receipt.ACCEPTED
    assert (await server.over(run))[0].info.status == "completed"


async def test_failures_are_heard_for_tasks_that_are_the_nodes_own(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (_, of_ben) = await server.begun(ada, ben, clients={"min_per_round": 1, "wait_for": 2})
    eve = await server.node("eve")
    eve.fail((run, of_ben.task.phase, 1), "I am ben")
    ada.fail(("no-such-run", of_ben.task.phase, 1))
    ada.fail((run, of_ben.task.phase, 9))
    ada.say(node_pb2.NodeMessage(failed=node_pb2.Failed(key=node_pb2.TaskKey(run=run, phase="train", number=1), cause="magic", what="x" * 9000)))
    await ben.answer(of_ben, 2.0)
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ben"]
    failure = record["rounds"][0]["failures"]["ada"]
    assert (failure["cause"], failure["what"]) == ("worker", "x" * 4000)
    [told] = [e for e in await server.events(run) if e.kind == "failed"]
    assert (told.node, json.loads(told.detail)["cause"]) == ("ada", Cause.WORKER)


async def test_whoever_is_replaced_by_another_process_of_its_name_is_told_so(server: Running) -> None:
    """A home that was copied, or restored beside the old one: both sides read why the connection never lasts."""
    ada = await server.node("ada")
    twin = replace(ada, heard=[], asks=[], released=[], _outbox=None, _tasks=[])
    await twin.connect()
    await until(lambda: ada.ended)
    told = error_of(cast("Any", ada.ended), server.ready.address)
    assert (type(told), told.what, told.why) == (Conflict, "another process has connected as node 'ada'", "each needs a home of its own")
    assert told.hint.endswith("fedscale project revoke NAME")
    assert (twin.ended, twin.connected) == (None, True)
    await twin.leave()


async def test_a_certificate_is_renewed_for_the_same_identity(server: Running) -> None:
    ada = await server.node("ada", connect=False)
    key = new_key()
    reply = await node_pb2_grpc.NodeStub(ada.channel).Renew(node_pb2.RenewRequest(request=new_request(key, "somebody-else")))
    member = await asyncio.to_thread(server.engine.store.member, "ada")
    assert member is not None
    assert b"BEGIN CERTIFICATE" in reply.certificate
    assert (member.role, member.serial) == (Role.NODE, serial_of(_certificate(reply.certificate)))
    error = await refusal(node_pb2_grpc.NodeStub(ada.channel).Renew(node_pb2.RenewRequest(request=b"junk")))
    assert error.code() is BAD


async def test_a_task_that_was_given_before_is_given_again_to_a_node_that_comes_back(server: Running) -> None:
    ada = await server.node("ada")
    run = await server.submit(plan_text())
    await ada.ask("init")
    await ada.leave()
    await ada.connect()
    ask = await ada.ask("init")
    assert ask.run == run
    assert (await ada.initialize(ask)).verdict == Receipt.ACCEPTED


def _certificate(pem: bytes) -> Any:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem)
