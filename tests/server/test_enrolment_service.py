"""Joining over the enrolment port: one ticket, one certificate, and nothing for anybody without a ticket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from fedscale.identity import Role, Ticket, identity_of, key_pem, load_certificate, new_key, new_request, serial_of
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import node_pb2, node_pb2_grpc
from tests.server.running import Node, Pass, Running, refusal


@pytest.fixture
async def door(server: Running) -> AsyncIterator[Any]:
    credentials = grpc.ssl_channel_credentials(server.admin.credentials.authority)
    async with grpc.aio.secure_channel(server.ready.enrolment, credentials) as channel:
        yield node_pb2_grpc.EnrolmentStub(channel)


async def ticket(server: Running, **wanted: Any) -> Ticket:
    return Ticket.parse((await server.admin.control.Invite(pb.InviteRequest(project="ward", **wanted))).ticket)


def request(of: Ticket, name: str = "ada", key: Any = None, **changed: Any) -> node_pb2.JoinRequest:
    return node_pb2.JoinRequest(**{"ticket": of.id, "secret": of.secret, "name": name, "request": new_request(key or new_key(), "x"), **changed})


async def test_the_authority_is_shown_to_everybody(server: Running, door: Any) -> None:
    assert (await door.Authority(node_pb2.AuthorityRequest())).certificate == server.admin.credentials.authority


async def test_whoever_has_no_certificate_yet_sends_little(server: Running, door: Any) -> None:
    error = await refusal(door.Authority(node_pb2.AuthorityRequest(), metadata=(("x-filling", "x" * 100_000),)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = await refusal(door.Join(node_pb2.JoinRequest(request=b"x" * (5 << 20))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_ticket_is_traded_for_a_certificate_that_works(server: Running, door: Any) -> None:
    invitation, key = await ticket(server), new_key()
    assert invitation.address == server.ready.enrolment
    reply = await door.Join(request(invitation, key=key))
    assert (reply.name, reply.project, reply.role, reply.address) == ("ada", "ward", "node", server.ready.address)
    assert identity_of(reply.certificate).uri == "fedscale://fedscale/node/ada"
    assert reply.authority == server.admin.credentials.authority
    credentials = Pass(key_pem(key), reply.certificate, reply.authority)
    node = Node("ada", credentials, credentials.channel(server.ready.address))
    server.people.append(node)
    await node.connect()
    assert server.engine.sessions.get("ada") is not None


async def test_the_ticket_decides_on_name_and_role(server: Running, door: Any) -> None:
    reply = await door.Join(request(await ticket(server, name="rae", role=Role.RESEARCHER), ""))
    assert (reply.name, reply.role) == ("rae", "researcher")


async def test_of_many_who_use_one_ticket_one_gets_in(server: Running, door: Any) -> None:
    invitation = await ticket(server)
    tries = await asyncio.gather(*(door.Join(request(invitation, f"n{i}")) for i in range(6)), return_exceptions=True)
    refused = [t for t in tries if isinstance(t, grpc.aio.AioRpcError)]
    assert (len(tries), len(refused)) == (6, 5)
    assert {t.code() for t in refused} == {grpc.StatusCode.UNAUTHENTICATED}
    assert all("the ticket was used before" in (t.details() or "") for t in refused)


async def test_who_never_heard_the_reply_asks_again_with_the_same_key(server: Running, door: Any) -> None:
    invitation, key = await ticket(server), new_key()
    lost = await door.Join(request(invitation, key=key))
    reply = await door.Join(request(invitation, key=key))
    assert serial_of(load_certificate(reply.certificate)) != serial_of(load_certificate(lost.certificate))
    for again in (request(invitation), request(invitation, "bob", key)):
        assert "the ticket was used before" in ((await refusal(door.Join(again))).details() or "")
    credentials = Pass(key_pem(key), reply.certificate, reply.authority)
    node = Node("ada", credentials, credentials.channel(server.ready.address))
    server.people.append(node)
    await node.connect()
    assert "the ticket was used before" in ((await refusal(door.Join(request(invitation, key=key)))).details() or "")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown ticket": ({"ticket": "nope"}, "the ticket is unknown"),
    "wrong secret": ({"secret": "nope"}, "the ticket's secret is wrong"),
    "no request": ({"request": b""}, "a certificate request"),
    "junk for a request": ({"request": b"\xff" * 999}, "a certificate request"),
    "name that is a path": ({"name": "../admin"}, "'../admin'"),
    "name too long": ({"name": "x" * 64}, "'xxx"),
    "name of the operator": ({"name": "admin"}, "the name 'admin' is taken"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_request_uses_nothing_up(server: Running, door: Any, case: str) -> None:
    invitation = await ticket(server)
    changed, told = REFUSED[case]
    error = await refusal(door.Join(request(invitation, **{"name": "ada", **changed})))
    assert error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS)
    assert told in (error.details() or "")
    assert (await door.Join(request(invitation))).name == "ada"
