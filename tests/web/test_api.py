"""The API and the pages: the numbers are those of the gRPC calls, the actions are the same, and nothing of a request comes back in an error."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pytest
from safetensors.numpy import load

from fedscale import bundle
from fedscale.identity import Role, Ticket
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.record import RunRecord
from fedscale.web.gate import PROOF
from fedscale_server.web import api
from fedscale_server.web.pages import STATIC
from tests.server.running import Counting, Running, plan_text, until
from tests.web.conftest import Front, Guest

PLANTED = "Jane Roe 1944-02-29"
MARKUP = "<img src=x onerror=alert(1)>"
JOB = {"job.toml": plan_text(rounds=1).encode(), "app.py": b"app = None\n"}


async def finished(front: Front, rounds: int = 2, **tables: Any) -> str:
    """A run of one site that is over."""
    ada = next((p for p in front.running.people if p.name == "ada"), None) or await front.running.node("ada")
    run = await front.running.submit(plan_text(**{"rounds": rounds, "every": 1, **tables}))
    working = ada.work(Counting())  # type: ignore[attr-defined]
    await front.running.over(run)
    working.cancel()
    return run


async def value(guest: Guest, path: str) -> Any:
    answer = await guest.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_every_number_is_that_of_the_calls(front: Front) -> None:
    run = await finished(front)
    guest = await front.person(Role.AUDITOR)
    detail, record = await front.running.detail(run)
    info = {field.name: getattr(detail.info, field.name) for field in detail.info.DESCRIPTOR.fields}
    assert await value(guest, "/api/runs") == [info]
    assert await value(guest, "/api/runs?project=ward") == [info]
    assert await value(guest, "/api/runs?project=other") == []
    shown = await value(guest, f"/api/runs/{run[:9]}")
    assert shown == {"info": info, "fraction": 1.0, "eta_seconds": None, "since": 0}
    assert RunRecord.from_json((await guest.http.get(f"/api/runs/{run}/record")).text).rounds == RunRecord.from_json(json.dumps(record)).rounds
    assert await value(guest, "/api/projects") == [{"name": "ward", "nodes": 1, "runs": 1}]
    status = await front.running.admin.control.Status(pb.StatusRequest())
    found = await value(guest, "/api/status")
    assert (found["version"], found["address"], [n["name"] for n in found["nodes"]]) == (status.version, status.address, ["ada"])
    assert await value(guest, "/api/sites") == found["nodes"]


async def test_the_picture_of_a_long_run_begins_with_its_last_phases(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "RECENT_PHASES", 3)
    run = await finished(front, rounds=4)
    guest = await front.person(Role.AUDITOR)
    since = (await value(guest, f"/api/runs/{run}"))["since"]
    events = await front.running.events(run, after=since)
    assert [(e.phase, e.number) for e in events if e.kind == "opened"] == [("evaluate", 3), ("train", 4), ("evaluate", 4)]
    assert events[0].kind == "opened"


async def test_the_model_and_the_report_are_those_that_the_command_line_leaves(front: Front) -> None:
    run = await finished(front, rounds=3)
    guest = await front.person(Role.RESEARCHER)
    answer = await guest.http.get(f"/api/runs/{run}/model")
    assert answer.headers["content-disposition"] == f'attachment; filename="{run}.safetensors"'
    tensors = load(answer.content)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"w": (await front.running.model(run)).tolist()}
    page = await guest.http.get(f"/api/runs/{run}/report")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["content-disposition"] == f'attachment; filename="{run}.html"'
    assert run in page.text


async def test_a_run_without_a_model_has_none_to_export(front: Front) -> None:
    run = await front.running.submit(plan_text())
    answer = await (await front.person(Role.COORDINATOR)).http.get(f"/api/runs/{run}/model")
    assert (answer.status_code, answer.json()["error"]["what"]) == (409, f"run {run} has no model yet")


# -------------------------------------------------------------------------------------------------------------- actions


async def test_a_coordinator_makes_a_project_invites_a_site_and_shuts_it_out(front: Front) -> None:
    guest = await front.person(Role.COORDINATOR)
    made = await guest.ask("POST", "/api/projects", json={"name": "heart"})
    assert (made.status_code, made.json()) == (201, {"name": "heart", "nodes": 0, "runs": 0})
    assert (await guest.ask("POST", "/api/projects", json={"name": "heart"})).status_code == 409
    invited = await guest.ask("POST", "/api/projects/heart/invitations", json={"name": "north"})
    assert invited.status_code == 201
    assert Ticket.parse(invited.json()["ticket"]).address == front.running.ready.enrolment
    ada = await front.running.node("ada")
    assert (await guest.ask("DELETE", "/api/sites/ada")).status_code == 204
    await until(lambda: not ada.connected)
    assert [(s["name"], s["revoked"]) for s in await value(guest, "/api/sites")] == [("ada", True)]


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.RESEARCHER])
async def test_a_run_is_paused_resumed_and_stopped(front: Front, role: Role) -> None:
    ada = await front.running.node("ada")
    run, _ = await front.running.begun(ada, rounds=2)
    guest = await front.person(role)
    seen = []
    for action in ("pause", "resume", "stop", "stop", "explode"):
        answer = await guest.ask("POST", f"/api/runs/{run}/state", json={"action": action, "reason": "enough"})
        seen.append((answer.status_code, answer.json().get("status")))
    assert seen == [(200, "paused"), (200, "running"), (200, "stopped"), (409, None), (404, None)]
    assert (await front.running.detail(run))[0].info.reason == "enough"


def zipped(files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


async def submitted(guest: Guest, files: dict[str, bytes], **fields: str) -> Any:
    parts = [("files", (name, content)) for name, content in files.items()]
    return await guest.ask("POST", "/api/runs", files=parts, data={"project": "ward", **fields})


@pytest.mark.parametrize(
    "files",
    [
        JOB,
        {"job.zip": zipped(JOB)},
        {"job.zip": zipped({f"heart/{name}": content for name, content in JOB.items()})},
        {f"heart/{name}": content for name, content in JOB.items()},
    ],
    ids=["files", "archive", "archive-of-a-folder", "folder"],
)
async def test_a_run_is_submitted_from_files(front: Front, files: dict[str, bytes]) -> None:
    guest = await front.person(Role.RESEARCHER)
    answer = await submitted(guest, files, key="once")
    assert answer.status_code == 201, answer.text
    again = await submitted(guest, files, key="once")
    assert again.json()["run"] == answer.json()["run"]
    row = front.store.run(answer.json()["run"])
    packed = bundle.read(front.running.engine.bundles.read(row.bundle))
    assert packed == JOB
    assert row.plan == plan_text(rounds=1)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"app.py": b""}, "not exactly one job file"),
        ({**JOB, "other.toml": b""}, "not exactly one job file"),
        ({"job.toml": JOB["job.toml"]}, "there is no module for app"),
        ({"job.toml": b"\xff"}, "not UTF-8"),
        ({"job.toml": b"[job", "app.py": b""}, "job.toml"),
        ({**JOB, "../evil.py": b""}, "a name that is not allowed"),
        ({**JOB, "a\\b.py": b""}, "a name that is not allowed"),
        ({**JOB, "server.key": b""}, "must not leave"),
        ({"job.zip": b"no archive"}, "archive cannot be read"),
        ({"job.zip": zipped({**JOB, "/etc/cron.d/evil": b""})}, "a name that is not allowed"),
        ({"job.zip": zipped({**JOB, "../../evil.py": b""})}, "a name that is not allowed"),
        ({"job.zip": zipped({**JOB, "zeros": bytes(bundle.MAX_BYTES + 1)})}, "archive is too large"),
    ],
)
def test_files_that_are_no_job(files: dict[str, bytes], told: str) -> None:
    with pytest.raises(Exception, match=told):
        api._packed(files)


async def test_a_submission_that_is_refused_starts_nothing(front: Front) -> None:
    guest = await front.person(Role.RESEARCHER)
    for files, fields in (({"app.py": b""}, {}), (JOB, {"project": "none"}), ({}, {})):
        answer = await submitted(guest, files, **fields)
        assert answer.status_code in (400, 404)
        assert set(answer.json()["error"]) == {"type", "what", "where", "why", "hint"}
    assert front.store.runs() == []


async def test_no_value_of_a_request_comes_back_in_an_error(front: Front) -> None:
    guest = await front.person(Role.COORDINATOR)
    bodies: list[Any] = [{"name": {"patient": PLANTED}}, [PLANTED], PLANTED, {"nom": PLANTED}, {"name": PLANTED * 20}]
    answers = [await guest.ask("POST", "/api/projects", json=body) for body in bodies]
    answers += [await guest.ask("POST", "/api/projects", content=PLANTED)]
    answers += [await guest.ask("POST", "/api/session", json={"name": "x", "password": [PLANTED]})]
    answers += [await guest.ask("POST", "/api/runs", content=PLANTED, headers={PROOF: guest.proof, "content-type": "multipart/form-data"})]
    assert {answer.status_code for answer in answers} == {400}
    assert [answer.text for answer in answers if "Jane" in answer.text] == []


# ---------------------------------------------------------------------------------------------------------------- pages


PAGES = ("/", "/runs", "/sites", "/models", "/privacy")


async def test_empty_pages_name_the_next_command(start: Any) -> None:
    front = await start()
    guest = await front.person(Role.COORDINATOR)
    texts = {path: (await guest.http.get(path)).text for path in PAGES}
    assert "fedscale project invite ward --name SITE" in texts["/"]
    assert "fedscale run submit job.toml" in texts["/runs"]
    assert "fedscale project invite PROJECT --name SITE" in texts["/sites"]
    for path in ("/models", "/privacy"):
        assert "fedscale run submit job.toml" in texts[path]


async def test_pages_offer_only_what_their_reader_may_do(front: Front) -> None:
    run = await front.running.submit(plan_text())
    await front.running.node("ada")
    expected = {Role.COORDINATOR: (True, True, True), Role.RESEARCHER: (True, True, False), Role.AUDITOR: (False, False, False)}
    for role, wanted in expected.items():
        guest = await front.person(role)
        texts = [(await guest.http.get(path)).text for path in (f"/runs/{run}", "/runs", "/sites")]
        assert ('id="stop"' in texts[0], "submit-files" in texts[1], "invite-name" in texts[2]) == wanted
        assert f"a-{role}" in texts[0] or "admin" in texts[0]


async def test_nothing_that_others_wrote_becomes_markup(front: Front) -> None:
    ada = await front.running.node("ada")
    run, (ask,) = await front.running.begun(ada)
    ada.fail(ask.key, what=MARKUP)
    await front.running.over(run)
    guest = await front.person(Role.COORDINATOR)
    stopped = await front.running.submit(plan_text())
    await guest.ask("POST", f"/api/runs/{stopped}/state", json={"action": "stop", "reason": MARKUP})
    for path in (*PAGES, f"/runs/{run}", f"/runs/{stopped}", f"/compare?run={run}&run={stopped}"):
        text = (await guest.http.get(path)).text
        assert "<img" not in text, path
        assert " style=" not in text, f"the policy would refuse it: {path}"
        assert "<script>" not in text
        assert "onclick" not in text
    assert "&lt;img src=x" in (await guest.http.get(f"/runs/{run}")).text


async def test_a_failure_is_shown_with_reason_and_advice(front: Front) -> None:
    nodes = await front.running.nodes("ada", "ben")
    run, (ask, other) = await front.running.begun(*nodes, clients={"min_per_round": 1, "wait_for": 2})
    nodes[0].fail(ask.key, what="ValueError in the app")
    await nodes[1].answer(other, 1.0)
    await front.running.over(run)
    text = (await (await front.person(Role.AUDITOR)).http.get(f"/runs/{run}")).text
    row = text[text.index('id="failures"') :].partition("</tbody>")[0]
    for part in ("ada", "train 1", "code", "ValueError in the app", "app.py:7", "see the log"):
        assert part in row


async def test_runs_are_compared(front: Front) -> None:
    runs = [await finished(front, seed=seed) for seed in (3, 4)]
    guest = await front.person(Role.AUDITOR)
    text = (await guest.http.get(f"/compare?run={runs[0]}&run={runs[1]}")).text
    assert text.count("<svg") >= 2
    assert "job.seed" in text
    assert (await guest.http.get(f"/compare?run={runs[0]}")).status_code == 400
    assert (await guest.http.get("/compare?" + "run=x&" * 13)).status_code == 400
    assert (await guest.http.get(f"/compare?run={runs[0]}&run=none")).status_code == 404


async def test_privacy_says_what_was_promised_and_never_more(front: Front) -> None:
    run = await front.running.submit(plan_text())
    text = (await (await front.person(Role.AUDITOR)).http.get("/privacy")).text
    assert run in text
    assert "none: no differential privacy" in text
    assert "the coordinator receives each site" in text


async def test_after_the_login_one_is_where_one_wanted_to_be_and_nowhere_else(front: Front) -> None:
    guest = front.guest()
    answer = await guest.http.get("/runs/heart-123?x=1&y=2")
    assert answer.headers["location"] == "/login?next=/runs/heart-123%3Fx%3D1%26y%3D2"
    page = await guest.http.get(answer.headers["location"])
    assert 'data-then="/runs/heart-123?x=1&amp;y=2"' in page.text
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"):
        assert 'data-then="/"' in (await guest.http.get("/login", params={"next": elsewhere})).text


def test_the_scripts_are_small_and_load_nothing_from_elsewhere() -> None:
    scripts = {name: path.read_text() for name, path in STATIC.items() if name.endswith(".js")}
    # What a browser loads before it shows anything: well below the hundred thousand that would be felt on a slow line.
    assert sum(len(text.encode()) for text in scripts.values()) < 40_000
    for name, path in STATIC.items():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, name
        assert "https://" not in text, name


async def test_health_is_told_to_everybody_and_readiness_with_the_database(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = front.guest()
    assert [(await guest.http.get(path)).text for path in ("/healthz", "/readyz")] == ["ok\n", "ready\n"]

    async def broken(self: object) -> None:
        from sqlalchemy.exc import OperationalError

        raise OperationalError("SELECT", {}, Exception(PLANTED))

    monkeypatch.setattr("fedscale_server.coordinator.Coordinator.projects", broken)
    answer = await guest.http.get("/readyz")
    assert answer.status_code == 503
    assert "Jane" not in answer.text


async def test_a_server_that_is_started_again_knows_who_is_logged_in(front: Front) -> None:
    guest = await front.person(Role.COORDINATOR)
    await front.running.restart()
    assert isinstance(front.running, Running)
    assert (await guest.http.get("/api/session")).json()["name"] == "admin"


async def test_what_hides_single_updates_stands_with_what_it_takes_to_hold(front: Front) -> None:
    tables: dict[str, Any] = {"secagg": {"enabled": True, "adversarial": 0.25, "dropout": 0.2}, "evaluate": {"per_site": False}}
    run = await front.running.submit(plan_text(**tables, clients={"min_per_round": 3}))
    guest = await front.person(Role.AUDITOR)
    page = (await guest.http.get(f"/runs/{run}")).text
    assert "secure aggregation, against a malicious coordinator" in page
    assert "at most 25 % of the sites collude with the coordinator, and at most 20 % drop out of a round" in page
