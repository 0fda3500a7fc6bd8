"""What people see and do over the wire: projects, tickets, sites, runs, and watching them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import grpc.aio
import pytest

import fedscale
from fedscale.errors import Cause
from fedscale.identity import Role, Ticket
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale_server import coordinator
from fedscale_server.feed import QUEUE
from tests.server.running import BUNDLE, Running, plan_text, refusal, until

BAD = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
TAKEN = grpc.StatusCode.ALREADY_EXISTS


async def test_the_server_at_a_glance(server: Running) -> None:
    ada, _ = await server.node("ada"), await server.person(Role.AUDITOR)
    run, _ = await server.begun(ada)
    status = await server.admin.control.Status(pb.StatusRequest())
    assert (status.version, status.federation, status.address, status.enrolment) == (
        fedscale.__version__, "fedscale", server.ready.address, server.ready.enrolment,
    )  # fmt: skip
    assert [(n.name, n.connected) for n in status.nodes] == [("ada", True)]
    assert [(r.run, r.status, r.phase, r.number, r.rounds) for r in status.runs] == [(run, "running", "train", 1, 1)]


async def test_projects_are_made_and_counted(server: Running) -> None:
    await server.admin.control.CreateProject(pb.CreateProjectRequest(name="lab"))
    await server.node("ada")
    await server.submit(plan_text())
    listed = (await server.admin.control.ListProjects(pb.ListProjectsRequest())).projects
    assert [(p.name, p.nodes, p.runs) for p in listed] == [("lab", 0, 0), ("ward", 1, 1)]
    for name in ("", "Ward", "../x", "x" * 64):
        assert (await refusal(server.admin.control.CreateProject(pb.CreateProjectRequest(name=name)))).code() is BAD


async def test_an_invitation_is_for_a_node_and_a_day_unless_told_otherwise(server: Running) -> None:
    before = server.engine.now().timestamp()
    reply = await server.admin.control.Invite(pb.InviteRequest(project="ward"))
    assert before + 86_400 <= reply.expires_at <= server.engine.now().timestamp() + 86_400
    assert Ticket.parse(reply.ticket).address == server.ready.enrolment
    reply = await server.admin.control.Invite(pb.InviteRequest(project="ward", ttl_seconds=60))
    assert reply.expires_at <= server.engine.now().timestamp() + 60
    for request, told in (
        (pb.InviteRequest(project="word"), "no project 'word'; did you mean 'ward'?"),
        (pb.InviteRequest(project="ward", role="king"), "no role 'king'; use one of node, coordinator, researcher, auditor"),
        (pb.InviteRequest(project="ward", ttl_seconds=-1), "a ticket cannot be valid for that long (it must expire, within 30 days)"),
        (pb.InviteRequest(project="ward", ttl_seconds=float("nan")), "a ticket cannot be valid for that long (it must expire, within 30 days)"),
        (pb.InviteRequest(project="ward", name="A B"), "'A B' is not a valid name"),
    ):
        assert ((await refusal(server.admin.control.Invite(request))).details() or "").startswith(told)


async def test_sites_are_listed_by_project_and_people_are_no_sites(server: Running) -> None:
    await server.admin.control.CreateProject(pb.CreateProjectRequest(name="lab"))
    await server.node("ada", connect=False)
    await server.node("ben", "lab")
    await server.person(Role.RESEARCHER)
    await server.admin.control.Revoke(pb.RevokeRequest(name="ada"))

    async def sites(project: str) -> list[tuple[str, bool, bool]]:
        listed = await server.admin.control.ListNodes(pb.ListNodesRequest(project=project))
        return [(n.name, n.connected, n.revoked) for n in listed.nodes]

    assert await sites("") == [("ada", False, True), ("ben", True, False)]
    assert await sites("ward") == [("ada", False, True)]
    assert await sites("lab") == [("ben", True, False)]


SUBMISSIONS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str]] = {
    "no plan": ({"plan": ""}, BAD, "plan: 'job' is missing"),
    "no TOML": ({"plan": "job = ["}, BAD, "plan:1: not valid TOML"),
    "no such setting": ({"plan": '[job]\nname = "x"\n[clients]\nmin_per_rond = 2\n'}, BAD, "plan:4: 'clients.min_per_rond' is not a setting"),
    "strategy in Python": (
        {"plan": '[job]\nname = "x"\n[strategy]\nname = "custom"\n'},
        BAD,
        "a strategy composed in Python cannot be submitted; use one of the named strategies",
    ),
    "asynchronous strategy": (
        {"plan": '[job]\nname = "x"\n[strategy]\nname = "fedbuff"\n'},
        BAD,
        "strategy.name: 'fedbuff' is asynchronous, which only simulations are so far; use fedavg",
    ),
    "no such project": ({"project": "word"}, MISSING, "no project 'word'; did you mean 'ward'?"),
    "no such bundle": ({"bundle": "0" * 64}, MISSING, "000000000000: the app bundle is not on the server"),
    "no bundle": ({"bundle": "../../etc/passwd"}, MISSING, "../../etc/pa: the app bundle is not on the server"),
}


@pytest.mark.parametrize("case", SUBMISSIONS)
async def test_a_bad_submission_starts_nothing(server: Running, case: str) -> None:
    changed, code, told = SUBMISSIONS[case]
    request = pb.SubmitRunRequest(**{"project": "ward", "plan": plan_text(), "bundle": digest_of(BUNDLE), **changed})
    error = await refusal(server.admin.control.SubmitRun(request))
    assert error.code() is code
    assert (error.details() or "").startswith(told)
    assert (await server.admin.control.ListRuns(pb.ListRunsRequest())).runs == []
    assert server.engine.drivers() == []


async def test_the_same_key_never_starts_a_second_run(server: Running) -> None:
    runs = await asyncio.gather(*(server.submit(plan_text(), key="once") for _ in range(5)))
    assert len(set(runs)) == 1
    assert len(server.engine.drivers()) == 1
    assert await server.submit(plan_text()) != await server.submit(plan_text())
    ada = await server.node("ada")
    ada.work()
    await server.over(runs[0])
    assert await server.submit(plan_text(), key="once") == runs[0]
    assert server.engine.driver(runs[0]) is None
    request = pb.SubmitRunRequest(project="ward", plan=plan_text(seed=4), bundle=digest_of(BUNDLE), key="once")
    error = await refusal(server.admin.control.SubmitRun(request))
    assert (error.code(), error.details()) == (TAKEN, f"run {runs[0]}: the key was used for another submission; choose a new key")


async def test_a_run_that_is_over_is_shown_as_it_ended(server: Running) -> None:
    ada = await server.node("ada")
    ada.work()
    run = await server.submit(plan_text(rounds=2, every=2))
    live, _ = await server.over(run)
    await server.restart()
    server.people.remove(server.admin)
    detail, record = await server.detail(run[:9])
    assert detail == live
    info = detail.info
    assert (info.run, info.status, info.phase, info.number, info.rounds, info.reason) == (run, "completed", "evaluate", 2, 2, "")
    assert info.created < info.finished
    assert [(r["phase"], r["number"]) for r in record["rounds"]] == [("train", 1), ("train", 2), ("evaluate", 2)]
    assert record["model_digest"] == detail.model
    assert record["seconds"] == pytest.approx(info.finished - info.created, abs=1e-5)
    [listed] = (await server.admin.control.ListRuns(pb.ListRunsRequest(project="ward"))).runs
    assert listed == info
    assert not (await server.admin.control.ListRuns(pb.ListRunsRequest(project="lab"))).runs


async def test_a_run_that_goes_on_is_shown_so_far(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben, rounds=2)
    await ada.answer(of_ada, 1.0)
    detail, record = await server.detail(run)
    assert (detail.info.status, detail.info.finished, record["rounds"], record["bytes_up"]) == ("running", 0.0, [], 16 + 56)
    await ben.answer(of_ben, 1.0)
    await ada.ask("train")
    detail, record = await server.detail(run)
    assert [r["answered"] for r in record["rounds"]] == [["ada", "ben"]]
    assert record["model_digest"] == detail.model
    assert detail.info.number == 2


async def test_watching_resumes_without_a_gap_or_a_double(server: Running) -> None:
    nodes = await server.nodes("ada", "ben")
    run = await server.submit(plan_text(rounds=4, every=1, clients={"min_per_round": 2}))
    for node in nodes:
        node.work()
    seen: list[pb.RunEvent] = []
    while not seen or seen[-1].kind != "finished":
        call = server.admin.control.WatchRun(pb.WatchRunRequest(run=run, after=seen[-1].sequence if seen else 0))
        async for event in call:
            if event.sequence:
                seen.append(event)
                if len(seen) % 7 == 0:
                    break
        call.cancel()
    assert [e.sequence for e in seen] == list(range(1, len(seen) + 1))
    assert seen == await server.events(run)
    assert await server.events(run, after=seen[-1].sequence) == []


async def test_many_watchers_at_any_moment_see_the_same(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "PAGE", 3)
    ada = await server.node("ada")
    run = await server.submit(plan_text(rounds=10))
    watching = [asyncio.create_task(server.events(run))]
    ada.work()
    for _ in range(10):
        await asyncio.sleep(0.02)
        watching.append(asyncio.create_task(server.events(run)))
    first, *others = [[e for e in events if e.sequence] for events in await asyncio.gather(*watching)]
    assert first[-1].kind == "finished"
    assert all(other == first for other in others)


async def test_a_watcher_that_does_not_read_slows_nobody_and_is_told_to_come_back(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    driver = server.engine.driver(run)
    assert driver is not None
    slow = server.admin.control.WatchRun(pb.WatchRunRequest(run=run))
    first = await slow.read()
    assert isinstance(first, pb.RunEvent)
    await until(lambda: driver.feed._watchers)
    last = max(e.seq for e in await asyncio.to_thread(server.engine.store.journal, run))
    for number in range(last + 1, last + 1 + 4 * QUEUE):
        driver.feed.publish(pb.RunEvent(sequence=number, kind="answered", detail=json.dumps({"filling": "x" * 4096})))
    await ada.answer(ask, 1.0)
    assert (await server.detail(run))[0].info.status == "completed"

    read: list[pb.RunEvent] = []
    error = await refusal(_read_all(slow, read))
    assert len(read) < 4 * QUEUE
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        f"run {run}: this watcher does not keep up; watch again from the last event on",
    )


async def test_steering_says_what_it_cannot_do(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)

    async def refused(run: str, action: str) -> tuple[grpc.StatusCode, str | None]:
        error = await refusal(server.admin.control.SteerRun(pb.SteerRunRequest(run=run, action=action)))
        return error.code(), error.details()

    assert await refused(run, "explode") == (MISSING, "no action 'explode'; use stop, pause or resume")
    assert await refused("no-such-run", "stop") == (MISSING, "no run 'no-such-run'; see: fedscale run list")
    await ada.answer(ask, 1.0)
    await server.over(run)
    assert await refused(run, "stop") == (TAKEN, f"run {run} is completed already")


async def test_a_paused_run_stays_paused_over_a_restart(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada, rounds=2)
    await server.admin.control.SteerRun(pb.SteerRunRequest(run=run, action="pause"))
    await ada.answer(ask, 1.0)
    await ada.leave()
    await server.restart()
    server.people.remove(server.admin)
    assert (await server.detail(run))[0].info.status == "paused"
    ada.channel = ada.credentials.channel(server.ready.address)
    await ada.connect()
    resumed = await server.admin.control.SteerRun(pb.SteerRunRequest(run=run, action="resume"))
    assert resumed.status == "running"
    assert (await ada.ask("train")).task.number == 2


async def test_the_reason_of_a_failure_reaches_the_coordinator_with_all_its_parts(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    ada.fail(ask.key, "the column is missing", Cause.DATA)
    events = await server.events(run)
    [failed] = [e for e in events if e.kind == "failed"]
    assert (failed.node, failed.phase, failed.number) == ("ada", "train", 1)
    assert json.loads(failed.detail) == {
        "cause": "data", "what": "the column is missing", "where": "app.py:7", "hint": "see the log", "traceback": "app.py:7",
    }  # fmt: skip
    assert json.loads(events[-1].detail)["status"] == "failed"


async def _read_all(call: Any, read: list[pb.RunEvent]) -> None:
    while isinstance(event := await call.read(), pb.RunEvent):
        read.append(event)
