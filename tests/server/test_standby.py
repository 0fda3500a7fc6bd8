"""Two coordinators in this process, on one PostgreSQL and one folder of blobs: what each answers, and how a run changes hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import pytest
from sqlalchemy import text

from fedscale.errors import Conflict, Unreachable
from fedscale.identity import Role, Ticket
from fedscale.proto.v1 import bulk_pb2, node_pb2, node_pb2_grpc
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.faults import ERROR_KEY, unpacked
from fedscale_server.home import Home
from fedscale_server.settings import Settings
from fedscale_server.store.store import Store
from tests.server.running import BUNDLE, Node, Running, refusal, soon, until

pytestmark = [pytest.mark.requires("postgresql"), pytest.mark.parametrize("backend", ["postgresql"], indirect=True)]
Start: TypeAlias = Callable[[str], Awaitable[Running]]
LEASE_SECONDS = 15.0  # far longer than any machine stands still, for nobody shall take over by mistake
ACCEPTED = bulk_pb2.Receipt.ACCEPTED


@pytest.fixture
async def start(url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts coordinators by name, all of one federation."""
    running: list[Running] = []

    async def started(name: str) -> Running:
        shared = {"replicas": True, "lease_seconds": LEASE_SECONDS, "database": url, "blobs": str(tmp_path / "shared")}
        settings = Settings(**{"port": 0, "enrolment_port": 0, "web": False, **shared})
        authority = Home.load(running[0].path).authority if running else None
        Home.create(tmp_path / name, settings, datetime.now(UTC), authority)
        running.append(await Running._serve(tmp_path / name, settings))
        return running[-1]

    yield started
    for each in running:
        await each.close()


@pytest.fixture
async def leader(start: Start) -> Running:
    """A coordinator that leads, with a project and a bundle."""
    red = await start("red")
    await leads(red)
    await red.admin.control.CreateProject(pb.CreateProjectRequest(name="ward"))
    await red.admin.put(BUNDLE)
    return red


async def leads(server: Running) -> None:
    """Wait until a coordinator answers."""
    while True:
        try:
            await soon(server.admin.control.Status(pb.StatusRequest()))
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)
        else:
            return


async def moved(node: Node, server: Running) -> Node:
    """A node that turns to another coordinator."""
    await node.leave()
    await node.channel.close()
    node.channel = node.credentials.channel(server.ready.address)
    node.asks, node.taken = [], 0
    return await node.connect()


def told(error: grpc.aio.AioRpcError) -> str:
    """What a coordinator that stands by says of who leads."""
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    raised = unpacked(dict(error.trailing_metadata() or ()).get(ERROR_KEY))
    assert isinstance(raised, Unreachable)
    assert raised.what == "this coordinator stands by"
    return raised.why


async def test_whoever_stands_by_refuses_everybody_and_says_who_leads(leader: Running, start: Start) -> None:
    blue = await start("blue")
    credentials = await leader.join("alpha", Role.NODE)
    node = Node("alpha", credentials, credentials.channel(blue.ready.address))
    known = f"{leader.ready.address} leads"
    await until(blue.engine.store.leases.held)

    async def why() -> str:
        return told(await refusal(blue.admin.control.Status(pb.StatusRequest())))

    while await why() != known:
        await asyncio.sleep(0.02)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await node.connect()
    assert told(caught.value) == known
    authority = grpc.ssl_channel_credentials(blue.admin.credentials.authority)
    async with grpc.aio.secure_channel(blue.ready.enrolment, authority) as door:
        assert told(await refusal(node_pb2_grpc.EnrolmentStub(door).Join(node_pb2.JoinRequest(ticket="t", secret="s")))) == known
    await node.leave()
    await node.channel.close()


async def test_the_leader_tells_of_all(leader: Running, start: Start) -> None:
    blue = await start("blue")
    both = {leader.ready.address, blue.ready.address}
    status = await soon(leader.admin.control.Status(pb.StatusRequest()))
    while set(status.replicas) != both:
        await asyncio.sleep(0.02)
        status = await soon(leader.admin.control.Status(pb.StatusRequest()))
    assert (status.address, status.epoch) == (leader.ready.address, 1)
    assert status.leads_until > datetime.now(UTC).timestamp()
    invited = await leader.admin.control.Invite(pb.InviteRequest(project="ward"))
    assert {place.address for place in Ticket.parse(invited.ticket).places()} == {leader.ready.enrolment, blue.ready.enrolment}
    node = await leader.node("alpha")
    assert set(node.heard[0].welcome.addresses) == both
    assert (leader.path / "admin" / "address").read_text().split()[0] == leader.ready.address


async def test_a_run_goes_on_at_the_next_coordinator(leader: Running, start: Start) -> None:
    """One answer was in when the leader went; both sites are asked again, and the sum is what it would have been."""
    nodes = await leader.nodes("alpha", "beta")
    run, asks = await leader.begun(*nodes, rounds=2)
    receipt = await nodes[0].answer(asks[0], 1.0)
    assert (receipt.verdict, receipt.keep) == (ACCEPTED, True)
    blue = await start("blue")
    await leader.stop()
    await leads(blue)
    assert blue.engine.store.epoch == 2
    for node in nodes:
        await moved(node, blue)
    for number in (1, 2):
        for node, delta in zip(nodes, (1.0, 3.0), strict=True):
            ask = await node.ask("train")
            assert ask.task.number == number
            assert (await node.answer(ask, delta)).verdict == ACCEPTED
    reply, record = await blue.over(run)
    assert reply.info.status == "completed"
    assert [row["answered"] for row in record["rounds"]] == [["alpha", "beta"]] * 2
    assert np.array_equal(await blue.model(run), np.full(4, 4.0, np.float32))
    assert [path.name for path in (leader.path / "runs" / run / "answers").iterdir()] == ["train-1-alpha-" + path for path in left(leader, run)]
    assert all(path.stat().st_size == 0 for path in (leader.path / "runs" / run / "answers").iterdir())


async def test_a_leader_that_has_not_noticed_writes_nothing(leader: Running, url: str, opened: Callable[[str], Store]) -> None:
    """Its lease was ended behind its back and somebody else has it; it still believes to lead, and serves."""
    (node,) = await leader.nodes("alpha")
    run, (ask,) = await leader.begun(node, rounds=2)
    other = opened(url)
    before = [line.seq for line in other.journal(run)]
    with other._writer.begin() as connection:
        connection.execute(text("UPDATE lease SET epoch = epoch + 1, token = 'other', holder = 'other:1'"))
    error = await refusal(node.answer(ask, 1.0))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    error = await refusal(leader.admin.control.CreateProject(pb.CreateProjectRequest(name="clinic")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert [line.seq for line in other.journal(run)] == before
    assert [name for name, _, _ in other.projects()] == ["ward"]
    await until(lambda: leader.engine.store.stands_by)
    assert leader.engine.drivers() == []
    await until(lambda: not node.connected)


def left(server: Running, run: str) -> list[str]:
    """The ends of the names of answers in a coordinator's home."""
    return [path.name.rpartition("-")[2] for path in (server.path / "runs" / run / "answers").iterdir()]


async def test_a_home_is_used_once(leader: Running) -> None:
    with pytest.raises(Conflict, match="a server is running in this home already"):
        await soon(Running._serve(leader.path, leader.settings))


async def test_answers_that_nobody_will_open_are_removed_by_the_next_leader(leader: Running, start: Start, tmp_path: Path) -> None:
    """Whoever received them has died between the end of the run and the sweeping behind it."""
    nodes = await leader.nodes("alpha", "beta")
    run, _ = await leader.begun(*nodes)
    shared = tmp_path / "shared" / "answers"
    for name in ("long-over", run):
        (shared / name / "train-1-alpha").mkdir(parents=True)
        (shared / name / "train-1-alpha" / "1").write_bytes(b"masked")
    blue = await start("blue")
    await leader.stop()
    await leads(blue)
    assert [path.relative_to(shared).parts[0] for path in shared.rglob("1")] == [run]
