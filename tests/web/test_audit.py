"""The audit page: whatever somebody did by any door stands there, with who it was; no password and no token ever does."""

from __future__ import annotations

import re
from typing import Any

import grpc
import grpc.aio
import structlog.testing

from fedscale.identity import Role, Ticket, new_key, new_request
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import node_pb2, node_pb2_grpc
from fedscale.wire.codec import digest_of
from fedscale_server.web.pages import DEEDS_SHOWN
from tests.server.running import BUNDLE, plan_text, refusal
from tests.server.test_trail import long_trail
from tests.web.conftest import PASSWORD, Front


async def told(front: Front, **query: str) -> list[dict[str, Any]]:
    """What the API shows to an auditor, the oldest first."""
    guest = await front.person(Role.AUDITOR)
    answer = await guest.http.get("/api/audit", params=query)
    return list(reversed(answer.json()))


async def test_every_action_by_either_door_stands_in_the_trail(front: Front) -> None:
    await front.running.node("ada")
    run = await front.running.submit(plan_text())
    person = await front.person(Role.COORDINATOR)
    assert (await person.ask("POST", "/api/projects", json={"name": "lungs"})).status_code == 201
    ticket = (await person.ask("POST", "/api/projects/lungs/invitations", json={"name": "north"})).json()["ticket"]
    assert (await person.ask("POST", f"/api/runs/{run}/state", json={"action": "stop", "reason": "enough"})).status_code == 200
    assert (await person.ask("DELETE", "/api/sites/ada")).status_code == 204
    assert (await person.ask("DELETE", "/api/session")).status_code == 204
    found = await told(front)
    deeds = [(deed["who"], deed["door"], deed["action"], deed["target"]) for deed in found]
    assert ("ada", "ticket", "joined", "ward") in deeds
    submitted = next(deed for deed in found if deed["action"] == "run submitted")
    assert (submitted["door"], submitted["target"], len(submitted["facts"]["app"])) == ("certificate", run, 64)
    assert deeds[deeds.index(("admin", "dashboard", "logged in", "127.0.0.1")) :] == [
        ("admin", "dashboard", "logged in", "127.0.0.1"),
        ("admin", "dashboard", "project made", "lungs"),
        ("admin", "dashboard", "invited", "north"),
        ("admin", "dashboard", "run stop", run),
        ("admin", "dashboard", "shut out", "ada"),
        ("admin", "dashboard", "logged out", ""),
        ("a-auditor", "dashboard", "logged in", "127.0.0.1"),
    ]
    whole = (front.running.path / "audit.jsonl").read_text()
    assert ticket not in whole
    assert PASSWORD not in whole


async def test_wrong_passwords_are_noted_without_what_was_typed(front: Front) -> None:
    front.account("grace")
    guest = front.guest()
    await guest.login("grace", "a wrong one")
    await guest.login(PASSWORD, "grace")
    found = [(deed["who"], deed["action"]) for deed in await told(front)]
    assert found[1:3] == [("grace", "login refused"), ("unknown", "login refused")]
    assert PASSWORD not in (front.running.path / "audit.jsonl").read_text()


async def test_the_page_shows_who_did_what_and_whether_it_verifies(front: Front) -> None:
    person = await front.person(Role.COORDINATOR)
    await person.ask("POST", "/api/projects", json={"name": "lungs"})
    page = (await person.http.get("/audit")).text
    assert "All 3 lines verify." in page
    assert "project made" in page
    assert "Nothing was done yet." in (await person.http.get("/audit", params={"who": "<b>nobody"})).text
    trail = front.running.path / "audit.jsonl"
    trail.write_text(trail.read_text().replace("lungs", "heart"))
    page = (await person.http.get("/audit")).text
    assert "The audit trail does not verify: line 3 was edited." in page
    assert (await person.http.get("/api/audit/head")).json() == {"lines": 0, "head": "", "problem": "line 3 was edited"}


async def test_a_long_trail_is_shown_page_by_page(front: Front) -> None:
    guest = await front.person(Role.AUDITOR)
    (front.running.path / "audit.head").unlink()
    long_trail(front.running.path, DEEDS_SHOWN + 20)
    first = (await guest.http.get("/audit")).text
    assert first.count('<td class="number">') == DEEDS_SHOWN
    assert ("All 320 lines verify." in first, "Lines 21 to 320." in first, ">Newest</a>" in first) == (True, True, False)
    following = re.search(r'rel="next" href="([^"]*)"', first)
    assert following is not None
    second = (await guest.http.get("/audit" + following[1].replace("&amp;", "&"))).text
    assert ("Lines 1 to 20." in second, ">Newest</a>" in second, ">Older</a>" in second, "verify." in second) == (True, True, False, False)
    told = (await guest.http.get("/api/audit", params={"before": 10, "limit": 3, "who": "bob"})).json()
    assert [(deed["seq"], deed["who"]) for deed in told] == [(7, "bob"), (4, "bob"), (1, "bob")]
    assert (await guest.http.get("/api/audit", params={"before": -1})).status_code == 400


async def test_a_page_that_is_full_and_the_last_leads_to_no_empty_one(front: Front) -> None:
    guest = await front.person(Role.AUDITOR)
    long_trail(front.running.path, 3 * DEEDS_SHOWN)
    page = (await guest.http.get("/audit", params={"who": "ada"})).text
    assert (page.count('<td class="number">'), ">Older</a>" in page) == (DEEDS_SHOWN, False)


async def test_what_cannot_be_noted_is_not_answered_as_done(front: Front) -> None:
    person = await front.person(Role.COORDINATOR)
    (front.running.path / "audit.jsonl").write_text("no trail\n")
    answer = await person.ask("POST", "/api/projects", json={"name": "lungs"})
    assert (answer.status_code, answer.json()["error"]["what"]) == (503, "the audit trail cannot be written")


async def test_whoever_takes_a_model_stands_in_the_trail_and_nodes_and_apps_do_not(front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run, (ask,) = await front.running.begun(ada, rounds=2)
    grace = await front.running.person(Role.RESEARCHER, "grace")
    model = (await front.running.detail(run))[0].model
    for who in (ada, grace):
        assert len(await who.fetch(model)) == 16
        assert await who.fetch(digest_of(BUNDLE)) == BUNDLE
    assert len(await grace.fetch(model, offset=8)) == 8
    await ada.answer(ask)
    taken = [deed for deed in await told(front) if deed["action"] == "model taken"]
    assert [(deed["who"], deed["door"], deed["target"]) for deed in taken] == [("grace", "certificate", run)] * 2
    assert [deed["facts"] for deed in taken] == [{"model": model, "offset": 0}, {"model": model, "offset": 8}]


async def test_every_line_of_the_trail_stands_in_the_log_too(front: Front) -> None:
    with structlog.testing.capture_logs() as logged:
        (ada,) = await front.running.nodes("ada")
        run, _ = await front.running.begun(ada, rounds=2)
        await front.running.admin.fetch((await front.running.detail(run))[0].model)
        found = await told(front)
    noted = [each for each in logged if each["event"] == "audit"]
    assert {"joined", "run submitted", "model taken", "logged in"} <= {each["action"] for each in noted}
    assert [each["head"] for each in noted] == [f"{deed['seq']}:{deed['digest']}" for deed in found[-len(noted) :]]


async def test_a_model_of_a_run_that_is_over_is_noted_with_the_run(front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run = await front.running.submit(plan_text())
    ada.work()
    await front.running.over(run)
    await front.running.model(run)
    taken = [deed for deed in await told(front) if deed["action"] == "model taken"]
    assert [(deed["who"], deed["target"]) for deed in taken] == [("admin", run)]


async def test_no_byte_of_a_model_leaves_that_cannot_be_noted(front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run, _ = await front.running.begun(ada, rounds=2)
    model = (await front.running.detail(run))[0].model
    (front.running.path / "audit.jsonl").write_text("no trail\n")
    error = await refusal(front.running.admin.fetch(model))
    assert (error.code(), "the audit trail cannot be written" in str(error.details())) == (grpc.StatusCode.UNAVAILABLE, True)
    assert len(await ada.fetch(model)) == 16, "the sites work on"


async def test_nobody_joins_who_cannot_be_noted_and_the_ticket_stays_good(front: Front) -> None:
    reply = await front.running.admin.control.Invite(pb.InviteRequest(project="ward", name="north"))
    ticket = Ticket.parse(reply.ticket).places()[0]
    request = node_pb2.JoinRequest(ticket=ticket.id, secret=ticket.secret, name="north", request=new_request(new_key(), "north"))
    trail = front.running.path / "audit.jsonl"
    kept = trail.read_bytes()
    trail.write_text("no trail\n")
    authority = front.running.admin.credentials.authority
    async with grpc.aio.secure_channel(ticket.address, grpc.ssl_channel_credentials(authority)) as channel:
        error = await refusal(node_pb2_grpc.EnrolmentStub(channel).Join(request))
        assert (error.code(), "the audit trail cannot be written" in str(error.details())) == (grpc.StatusCode.UNAVAILABLE, True)
        assert front.store.member("north") is None
        trail.write_bytes(kept)
        joined = await node_pb2_grpc.EnrolmentStub(channel).Join(request)
    assert joined.name == "north"
    assert [deed["who"] for deed in await told(front) if deed["action"] == "joined"] == ["north"]
