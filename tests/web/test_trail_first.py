"""The trail comes first: what cannot be written down does not happen, by either door; what does not happen is not written down."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from fedscale.errors import Unreachable
from fedscale.identity import Role
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale_server.coordinator import Coordinator
from fedscale_server.trail import Author
from tests.command import fedscale
from tests.server.running import BUNDLE, plan_text, refusal
from tests.web.conftest import Front, Guest

BROKEN = "no trail\n"
LED: dict[str, Any] = {"strategy": {"name": "led", "rounds": 1}, "clients": {"min_per_round": 1}}


def trail(front: Front) -> Path:
    return front.running.path / "audit.jsonl"


def actions(front: Front) -> list[str]:
    return [json.loads(line)["action"] for line in trail(front).read_text().splitlines()]


async def state(front: Front, run: str) -> dict[str, Any]:
    """All that the deeds of these tests could change."""
    store, courier = front.store, front.running.engine.driver(run)
    return {
        "projects": store.projects(),
        "runs": sorted(row.id for row in store.runs()),
        "status": store.run(run).status,
        "reason": store.run(run).reason,
        "revoked": store.revoked(),
        "leader": courier.book.leader if courier is not None and hasattr(courier.book, "leader") else None,
        "paused": courier.book.run.paused if courier is not None else None,
    }


def calls(front: Front, run: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Every deed at the door of certificates."""
    control, plan = front.running.admin.control, plan_text()
    return {
        "project made": lambda: control.CreateProject(pb.CreateProjectRequest(name="lungs")),
        "invited": lambda: control.Invite(pb.InviteRequest(project="ward", name="north")),
        "shut out": lambda: control.Revoke(pb.RevokeRequest(name="ada")),
        "run submitted": lambda: control.SubmitRun(pb.SubmitRunRequest(project="ward", plan=plan, bundle=digest_of(BUNDLE), key="k")),
        "run stop": lambda: control.SteerRun(pb.SteerRunRequest(run=run, action="stop")),
        "run pause": lambda: control.SteerRun(pb.SteerRunRequest(run=run, action="pause")),
        "run led": lambda: control.Post(pb.PostRequest(run=run)),
        "run led to its end": lambda: control.Conclude(pb.ConcludeRequest(run=run, metrics="[]")),
    }


async def test_by_certificate_nothing_happens_that_cannot_be_noted(front: Front) -> None:
    await front.running.node("ada")
    run = await front.running.submit(plan_text(**LED))
    kept, before = trail(front).read_bytes(), await state(front, run)
    trail(front).write_text(BROKEN)
    for action, call in calls(front, run).items():
        error = await refusal(call())
        assert (error.code(), "the audit trail cannot be written" in str(error.details())) == (grpc.StatusCode.UNAVAILABLE, True), action
        assert await state(front, run) == before, action
    assert trail(front).read_text() == BROKEN
    trail(front).write_bytes(kept)
    for action in ("project made", "invited", "shut out", "run submitted", "run led", "run pause", "run stop"):
        await calls(front, run)[action]()
        assert actions(front)[-1] == action
    after = await state(front, run)
    assert (after["revoked"], after["status"], len(after["runs"]), len(after["projects"])) == ({"ada"}, "stopped", 2, 2)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/projects", {"name": "lungs"}),
        ("POST", "/api/projects/ward/invitations", {"name": "north"}),
        ("DELETE", "/api/sites/ada", None),
        ("POST", "/api/runs/{run}/state", {"action": "stop"}),
        ("POST", "/api/runs/{run}/state", {"action": "pause"}),
    ],
)
async def test_by_the_dashboard_nothing_happens_that_cannot_be_noted(front: Front, method: str, path: str, body: Any) -> None:
    ada = await front.running.node("ada")
    run, _ = await front.running.begun(ada, rounds=2)
    person, before = await front.person(Role.COORDINATOR), await state(front, run)
    kept = trail(front).read_bytes()
    trail(front).write_text(BROKEN)
    answer = await person.ask(method, path.format(run=run), json=body)
    assert (answer.status_code, answer.json()["error"]["what"]) == (503, "the audit trail cannot be written")
    assert await state(front, run) == before
    trail(front).write_bytes(kept)
    assert (await person.ask(method, path.format(run=run), json=body)).is_success


async def submitted(person: Guest, plan: str) -> httpx.Response:
    """A job handed in at the dashboard, as its form does."""
    files = [("files", ("job.toml", plan.encode())), ("files", ("app.py", b"app = None\n"))]
    return await person.ask("POST", "/api/runs", data={"project": "ward"}, files=files)


async def test_no_job_begins_at_the_dashboard_that_cannot_be_noted(front: Front) -> None:
    person = await front.person(Role.RESEARCHER)
    kept = trail(front).read_bytes()
    trail(front).write_text(BROKEN)
    answer = await submitted(person, plan_text())
    assert (answer.status_code, front.store.runs()) == (503, [])
    trail(front).write_bytes(kept)
    made = await submitted(person, plan_text())
    assert (made.status_code, [row.id for row in front.store.runs()]) == (201, [made.json()["run"]])


async def test_what_is_refused_is_not_told_as_done(front: Front) -> None:
    before, person = actions(front), await front.person(Role.COORDINATOR)
    refused = [
        ("POST", "/api/projects", {"name": "ward"}, 409),
        ("POST", "/api/projects/nowhere/invitations", {"name": "north"}, 404),
        ("DELETE", "/api/sites/nobody", None, 404),
        ("POST", "/api/runs/none/state", {"action": "stop"}, 404),
    ]
    for method, path, body, code in refused:
        assert (await person.ask(method, path, json=body)).status_code == code
    assert actions(front) == [*before, "logged in"]


async def test_the_same_submission_again_is_noted_once_under_the_run_that_it_began(front: Front) -> None:
    first = await front.running.submit(plan_text(), key="once")
    assert await front.running.submit(plan_text(), key="once") == first
    found = [json.loads(line) for line in trail(front).read_text().splitlines()]
    assert [deed["target"] for deed in found if deed["action"] == "run submitted"] == [first]


async def test_the_line_is_on_the_disk_before_anything_has_happened(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks while the line is written sees the world as it was."""
    await front.running.node("ada")
    run = await front.running.submit(plan_text(**LED))
    before, seen = await state(front, run), dict[str, Any]()
    front_trail = front.running.path / "audit.jsonl"
    desk_calls = calls(front, run)

    honest = Coordinator.note

    def looking(self: Coordinator, author: Author, action: str, target: str = "", **facts: Any) -> None:
        honest(self, author, action, target, **facts)
        store = front.store
        noted = json.loads(front_trail.read_text().splitlines()[-1])["action"]
        seen[noted] = (store.projects(), sorted(row.id for row in store.runs()), store.run(run).status, store.revoked())

    monkeypatch.setattr(Coordinator, "note", looking)
    world = (before["projects"], before["runs"], before["status"], before["revoked"])
    for action in ("project made", "invited", "run submitted", "run stop", "shut out"):
        await desk_calls[action]()
        assert seen[action] == world, action
        after = await state(front, run)
        world = (after["projects"], after["runs"], after["status"], after["revoked"])
    assert set(seen) == {"project made", "invited", "run submitted", "run stop", "shut out"}


def test_no_user_comes_or_goes_that_cannot_be_noted(tmp_path: Path) -> None:
    assert fedscale("server", "init", "--home", tmp_path).code == 0
    assert fedscale("server", "user", "add", "grace", "--role", "auditor", "--home", tmp_path).code == 0
    (tmp_path / "audit.jsonl").write_text(BROKEN)
    for words in (("add", "linus", "--role", "auditor"), ("remove", "grace")):
        refused = fedscale("server", "user", *words, "--home", tmp_path)
        assert (refused.code, "the audit trail cannot be written" in refused.err) == (Unreachable.exit_code, True)
    assert [user["name"] for user in fedscale("server", "user", "list", "--home", tmp_path, "--json").data] == ["grace"]
