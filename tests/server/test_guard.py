"""Who may call what: every method that the server offers times everybody who may knock, on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest

from fedscale.identity import Identity, Role, certificate_pem, key_pem, new_authority, new_key, new_request
from fedscale.proto.v1 import bulk_pb2, control_pb2, node_pb2
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.faults import ERROR_KEY
from fedscale_server.home import Home
from fedscale_server.services import guard
from tests.server.running import OPTIONS, PATIENCE, Pass, Running, plan_text, refusal, soon, until

Code = grpc.StatusCode
FILES = (bulk_pb2, control_pb2, node_pb2)
METHODS = {f"/{s.full_name}/{m.name}": m for f in FILES for s in f.DESCRIPTOR.services_by_name.values() for m in s.methods}
PUBLIC = {"/fedscale.v1.Enrolment/Authority", "/fedscale.v1.Enrolment/Join"}

# What an empty call comes to for (node, coordinator, researcher, auditor). DENIED says that it was not even looked at; everything else shows that
# the method itself has spoken: there is no Hello, no name, no digest, no certificate request in an empty call.
OK, BAD, MISSING, DENIED, NOT_LED = Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.ALREADY_EXISTS
MATRIX = {
    "/fedscale.v1.Node/Connect": (BAD, DENIED, DENIED, DENIED),
    "/fedscale.v1.Node/Renew": (BAD, BAD, BAD, BAD),
    "/fedscale.v1.Frames/Fetch": (MISSING, BAD, BAD, DENIED),
    "/fedscale.v1.Frames/Submit": (BAD, DENIED, DENIED, DENIED),
    "/fedscale.v1.Frames/Put": (DENIED, BAD, BAD, DENIED),
    "/fedscale.v1.Frames/Offset": (BAD, DENIED, DENIED, DENIED),
    "/fedscale.v1.Control/Status": (DENIED, OK, OK, OK),
    "/fedscale.v1.Control/CreateProject": (DENIED, BAD, DENIED, DENIED),
    "/fedscale.v1.Control/ListProjects": (DENIED, OK, OK, OK),
    "/fedscale.v1.Control/Invite": (DENIED, MISSING, DENIED, DENIED),
    "/fedscale.v1.Control/ListNodes": (DENIED, OK, OK, OK),
    "/fedscale.v1.Control/Revoke": (DENIED, MISSING, DENIED, DENIED),
    "/fedscale.v1.Control/SubmitRun": (DENIED, BAD, BAD, DENIED),
    "/fedscale.v1.Control/ListRuns": (DENIED, OK, OK, OK),
    "/fedscale.v1.Control/GetRun": (DENIED, MISSING, MISSING, MISSING),
    "/fedscale.v1.Control/WatchRun": (DENIED, MISSING, MISSING, MISSING),
    "/fedscale.v1.Control/SteerRun": (DENIED, MISSING, MISSING, DENIED),
    "/fedscale.v1.Control/Post": (DENIED, NOT_LED, NOT_LED, DENIED),
    "/fedscale.v1.Control/Collect": (DENIED, NOT_LED, NOT_LED, DENIED),
    "/fedscale.v1.Control/Conclude": (DENIED, MISSING, MISSING, DENIED),
}
ROLES = (Role.NODE, Role.COORDINATOR, Role.RESEARCHER, Role.AUDITOR)


async def code_of(channel: grpc.aio.Channel, name: str) -> grpc.StatusCode:
    """What an empty call of a method ends with."""
    method = METHODS[name]

    async def nothing() -> AsyncIterator[bytes]:
        for part in list[bytes]():
            yield part

    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(name)(nothing() if method.client_streaming else b"", timeout=PATIENCE)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


async def codes(channel: grpc.aio.Channel) -> dict[str, grpc.StatusCode]:
    return {name: await code_of(channel, name) for name in METHODS if name not in PUBLIC}


def test_every_method_stands_in_the_matrix_and_in_the_table() -> None:
    assert len(METHODS) == 22
    assert set(MATRIX) == set(METHODS) - PUBLIC == set(guard.RIGHTS)


async def test_every_role_may_call_exactly_its_methods(server: Running) -> None:
    people = [await server.node("ada", connect=False), server.admin, await server.person(Role.RESEARCHER), await server.person(Role.AUDITOR)]
    seen = {role: await codes(person.channel) for role, person in zip(ROLES, people, strict=True)}
    assert {name: tuple(seen[role][name] for role in ROLES) for name in MATRIX} == MATRIX


async def test_a_method_without_a_row_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    rights = {name: roles for name, roles in guard.RIGHTS.items() if not name.endswith("/Status")}
    monkeypatch.setattr(guard, "RIGHTS", rights)
    error = await refusal(server.admin.control.Status(pb.StatusRequest()))
    assert (error.code(), error.details()) == (Code.PERMISSION_DENIED, "role 'coordinator' may not call Status")


async def test_whoever_was_revoked_may_call_nothing(server: Running) -> None:
    ada = await server.node("ada", connect=False)
    await server.admin.control.Revoke(pb.RevokeRequest(name="ada"))
    assert set((await codes(ada.channel)).values()) == {Code.PERMISSION_DENIED}
    error = await refusal(ada.connect())
    assert (error.details() or "").startswith("'ada' was revoked (at ")


async def test_without_a_certificate_of_the_federation_there_is_no_connection(server: Running) -> None:
    authority = server.admin.credentials.authority
    stranger, key = new_authority("fedscale", datetime.now(UTC)), new_key()
    who = Identity("fedscale", Role.COORDINATOR, "admin")
    forged = certificate_pem(stranger.issue(new_request(key, "admin"), who, datetime.now(UTC)))
    nothing = grpc.aio.secure_channel(server.ready.address, grpc.ssl_channel_credentials(authority), options=OPTIONS)
    plain = grpc.aio.insecure_channel(server.ready.address, options=OPTIONS)
    for channel in (nothing, plain, Pass(key_pem(key), forged, authority).channel(server.ready.address)):
        async with channel:
            assert await code_of(channel, "/fedscale.v1.Control/Status") is Code.UNAVAILABLE


async def test_a_certificate_of_the_authority_for_nobody_we_know_is_refused(server: Running) -> None:
    key, authority = new_key(), Home.load(server.path).authority
    for who in (Identity("fedscale", Role.COORDINATOR, "mallory"), Identity("fedscale", Role.NODE, "admin")):
        certificate = certificate_pem(authority.issue(new_request(key, who.name), who, datetime.now(UTC)))
        async with Pass(key_pem(key), certificate, server.admin.credentials.authority).channel(server.ready.address) as channel:
            assert set((await codes(channel)).values()) == {Code.PERMISSION_DENIED}


async def test_the_enrolment_port_offers_nothing_else(server: Running) -> None:
    credentials = grpc.ssl_channel_credentials(server.admin.credentials.authority)
    async with grpc.aio.secure_channel(server.ready.enrolment, credentials, options=OPTIONS) as channel:
        assert set((await codes(channel)).values()) == {Code.UNIMPLEMENTED}
        assert await code_of(channel, "/fedscale.v1.Enrolment/Authority") is Code.OK
        assert await code_of(channel, "/fedscale.v1.Enrolment/Join") is Code.UNAUTHENTICATED
    assert {await code_of(server.admin.channel, name) for name in PUBLIC} == {Code.UNIMPLEMENTED}


async def test_an_unknown_method_is_unimplemented(server: Running) -> None:
    call: Any = server.admin.channel.unary_unary("/fedscale.v1.Control/Sudo")
    error = await refusal(call(b""))
    assert error.code() is Code.UNIMPLEMENTED


async def test_revocation_cuts_an_open_control_stream(server: Running) -> None:
    ada = await server.node("ada")
    await server.admin.control.Revoke(pb.RevokeRequest(name="ada"))
    await soon(ada._tasks[0])
    assert ada.ended is None or ada.ended.code() is Code.PERMISSION_DENIED
    assert server.engine.sessions.get("ada") is None


async def test_revocation_cuts_a_watcher_that_hears_nothing(server: Running) -> None:
    auditor = await server.person(Role.AUDITOR)
    run = await server.submit(plan_text())
    call = auditor.control.WatchRun(pb.WatchRunRequest(run=run))
    watching = asyncio.create_task(refusal(_all(call)))
    driver = server.engine.driver(run)
    assert driver is not None
    await until(lambda: driver.feed._watchers)
    await server.admin.control.Revoke(pb.RevokeRequest(name=auditor.name))
    assert (await soon(watching)).code() is Code.PERMISSION_DENIED


async def test_revocation_cuts_an_upload_on_its_way(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    _, (ask, _) = await server.begun(ada, ben)
    body, revoked = ask.words(1.0).tobytes(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:8]
        await revoked.wait()
        yield body[8:]

    sending = asyncio.create_task(refusal(ada.submit(ask.key, body, parts=slowly())))
    await until(lambda: [path for path in server.path.glob("runs/*/uploads/*") if path.stat().st_size == 8])
    await server.admin.control.Revoke(pb.RevokeRequest(name="ada"))
    revoked.set()
    assert (await soon(sending)).code() is Code.PERMISSION_DENIED


async def test_errors_arrive_with_their_class_and_words(server: Running) -> None:
    error = await refusal(anext(aiter(server.admin.control.GetRun(pb.GetRunRequest(run="nothing-here")))))
    sent = dict(error.trailing_metadata() or ())[ERROR_KEY]
    assert (error.code(), error.details()) == (Code.NOT_FOUND, "no run 'nothing-here'; see: fedscale run list")
    assert json.loads(sent) == {"type": "NotFound", "what": "no run 'nothing-here'", "where": "", "why": "", "hint": "see: fedscale run list"}
    error = await refusal(server.admin.control.CreateProject(pb.CreateProjectRequest(name="ward")))
    assert (error.code(), error.details()) == (Code.ALREADY_EXISTS, "project 'ward' exists already")


async def _all(call: Any) -> list[pb.RunEvent]:
    return [event async for event in call]
