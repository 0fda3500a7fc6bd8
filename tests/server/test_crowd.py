"""Hundreds of nodes at once, each with a TLS session and a certificate of its own: all are heard, all are in the one round, all come back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

import fedscale
from fedscale.identity import Identity, Role, certificate_pem, key_pem, new_key, new_request
from fedscale.proto.v1 import node_pb2, node_pb2_grpc
from fedscale.wire.convert import assignment_from_proto
from fedscale_server.home import Home
from tests.server.running import SCHEMA, Ask, Node, Pass, Receipt, Running, plan_text, until

CROWD, STEP = 500, 0.25
STORM = 150
LONG = 540.0


def enrolled(running: Running, count: int) -> list[Node]:
    """Nodes that are entered into the database, for hundreds of tickets would be another test."""
    authority, now, made = Home.load(running.path).authority, datetime.now(UTC), []
    root = certificate_pem(authority.certificate)
    for number in range(count):
        name, key = f"node-{number:03}", new_key()
        certificate = authority.issue(new_request(key, name), Identity(running.settings.federation, Role.NODE, name), now, 24)
        serial, dates = f"{certificate.serial_number:x}", (certificate.not_valid_after_utc, certificate.not_valid_before_utc)
        running.engine.store.enrol(name, "ward", Role.NODE, serial, *dates)
        proof = Pass(key_pem(key), certificate_pem(certificate), root)
        made.append(Node(name, proof, proof.channel(running.ready.address)))
    return made


async def once(node: Node, there: asyncio.Semaphore) -> Any:
    """Greet, make the first model if asked, answer one task, and stay to the end."""
    stream: Any = node_pb2_grpc.NodeStub(node.channel).Connect()
    await stream.write(node_pb2.NodeMessage(hello=node_pb2.Hello(version=fedscale.__version__, datasets=["default"])))
    beating = asyncio.create_task(beat(stream))
    try:
        while isinstance(message := await stream.read(), node_pb2.ServerMessage):
            if message.WhichOneof("message") == "welcome":
                there.release()
            elif message.WhichOneof("message") == "assignment":
                ask = Ask(*assignment_from_proto(message.assignment, node.name))
                if ask.task.schema is not None:
                    return await node.answer(ask, STEP)
                assert (await node.initialize(ask)).verdict == Receipt.ACCEPTED
        raise AssertionError(f"{node.name} was let go of")
    finally:
        beating.cancel()
        stream.cancel()


async def beat(stream: Any) -> None:
    while True:
        await asyncio.sleep(1.0)
        await stream.write(node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat()))


@pytest.mark.timeout(600)
async def test_five_hundred_nodes_take_part_in_one_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All of them live in this one process: how long each takes to speak is the machine's affair.
    monkeypatch.setattr("fedscale_server.services.node.SILENCE_SECONDS", LONG)
    running = await Running.start(tmp_path / "home")
    nodes, there = enrolled(running, CROWD), asyncio.Semaphore(0)
    try:
        async with asyncio.timeout(LONG), asyncio.TaskGroup() as group:
            working = [group.create_task(once(node, there)) for node in nodes]
            for _ in nodes:
                await there.acquire()
            assert len(running.engine.sessions.eligible("ward", "default")) == CROWD
            run = await running.submit(plan_text(clients={"min_per_round": CROWD}))
        assert {work.result().verdict for work in working} == {Receipt.ACCEPTED}
        _, record = await running.over(run)
        assert record["status"] == "completed"
        assert record["rounds"][0]["answered"] == sorted(node.name for node in nodes)
        assert np.allclose(await running.model(run), np.full(SCHEMA.size, STEP), atol=1e-3)
    finally:
        running.people += nodes
        await running.close()


async def hold(node: Node, there: asyncio.Semaphore) -> None:
    """Be connected, and come back whenever that ends."""
    while True:
        stream: Any = node_pb2_grpc.NodeStub(node.channel).Connect()
        beating: asyncio.Task[None] | None = None
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.write(node_pb2.NodeMessage(hello=node_pb2.Hello(version=fedscale.__version__, datasets=["default"])))
            beating = asyncio.create_task(beat(stream))
            while isinstance(message := await stream.read(), node_pb2.ServerMessage):
                if message.WhichOneof("message") == "welcome":
                    there.release()
        if beating:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        await asyncio.sleep(0.1)


@pytest.mark.timeout(600)
async def test_all_come_back_at_once_after_a_restart(tmp_path: Path) -> None:
    running = await Running.start(tmp_path / "home")
    nodes, there = enrolled(running, STORM), asyncio.Semaphore(0)
    holding = [asyncio.create_task(hold(node, there)) for node in nodes]
    try:
        async with asyncio.timeout(LONG):
            for _ in nodes:
                await there.acquire()
            await running.restart()
            names = tuple(sorted(node.name for node in nodes))
            await until(lambda: len(running.engine.sessions.eligible("ward", "default")) == len(names), LONG)
            assert running.engine.sessions.eligible("ward", "default") == names
    finally:
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
        running.people += nodes
        await running.close()
