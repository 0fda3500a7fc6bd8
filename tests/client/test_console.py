"""The console of a site over HTTP: who gets in, what it tells, what it changes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from fedscale.clock import ManualClock
from fedscale.privacy.accountant import epsilon
from fedscale.web.gate import PROOF
from fedscale_client import chronicle, policy
from fedscale_client.console import rights
from fedscale_client.home import NodeHome
from fedscale_client.ledger import book
from tests.client.console_site import APP, Site, console, joined, past, tell
from tests.client.ledger.samples import DELTA, SPEND, opened_database
from tests.command import fedscale
from tests.web.conftest import Guest

PATIENCE = 60.0
# What an empty request of the owner comes to.
OWNED = dict.fromkeys(rights.RIGHTS, 200) | {
    "GET /static/{name}": 404,
    "GET /asked/{run}": 404,
    "GET /api/asked/{run}": 404,
    "POST /api/session/link": 400,
    "POST /api/pause": 400,
    "POST /api/apps/{app}": 400,
    "DELETE /api/session": 204,
}


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    return joined(tmp_path / "mercy")


@pytest.fixture
async def site(home: NodeHome) -> AsyncIterator[Site]:
    past(home)
    async with console(home) as made:
        yield made


@pytest.fixture
async def stranger(site: Site) -> AsyncIterator[Guest]:
    async with httpx.AsyncClient(base_url=site.address, timeout=PATIENCE, trust_env=False) as http:
        yield Guest(http)


@pytest.fixture
async def owner(site: Site) -> AsyncIterator[Guest]:
    async with httpx.AsyncClient(base_url=site.address, timeout=PATIENCE, trust_env=False) as http:
        yield await site.owner(http)


async def code(guest: Guest, key: str) -> int:
    """What an empty request ends with; of a stream only the beginning is read."""
    method, _, path = key.partition(" ")
    path = path.replace("{name}", "none").replace("{run}", "none").replace("{app}", "none")
    headers = {PROOF: guest.proof}
    async with guest.http.stream(method, path, headers=headers) as answer:
        return answer.status_code


# ------------------------------------------------------------------------------------------------------------ who gets in


async def test_the_owner_may_do_everything_and_nobody_else_anything(owner: Guest, stranger: Guest) -> None:
    await stranger.open()
    keys = sorted(rights.RIGHTS, key=lambda key: key.startswith("DELETE"))
    assert {key: await code(owner, key) for key in keys} == OWNED
    closed = {key: 401 if " /api/" in key or key == "GET /metrics" else 303 for key in keys if None not in rights.RIGHTS[key]}
    assert {key: await code(stranger, key) for key in closed} == closed
    assert {key: await code(owner, key) for key in closed} == closed, "the last row has logged out"


async def test_every_address_is_in_the_table(owner: Guest) -> None:
    served = (await owner.http.get("/api/openapi.json")).json()["paths"]
    offered = {f"{method.upper()} {path}" for path, methods in served.items() for method in methods}
    assert offered == {key for key in rights.RIGHTS if " /api/" in key} - {"GET /api/openapi.json"}


async def test_a_link_works_once(site: Site, stranger: Guest) -> None:
    token = site.link().partition("#")[2]
    assert (await stranger.enter(token)).json() == {"name": "mercy", "role": "node"}
    again = await stranger.enter(token)
    assert (again.status_code, again.json()["error"]["hint"]) == (403, "make another: fedscale node open")


async def test_a_login_ends_after_twelve_hours(home: NodeHome) -> None:
    clock = ManualClock(datetime.now(UTC))
    async with console(home, clock) as site, httpx.AsyncClient(base_url=site.address, trust_env=False, timeout=PATIENCE) as http:
        owner = await site.owner(http)
        clock.advance(12 * 3600 - 1)
        assert (await owner.http.get("/api/status")).status_code == 200
        clock.advance(2)
        assert (await owner.http.get("/api/status")).status_code == 401


async def test_another_page_in_the_browser_can_change_nothing(site: Site, owner: Guest) -> None:
    for headers in ({}, {PROOF: "x"}, {PROOF: owner.proof, "origin": "http://127.0.0.1:1"}):
        answer = await owner.http.post("/api/pause", json={"paused": True}, headers=headers)
        assert answer.status_code == 403
    assert (await owner.http.get("/api/status", headers={"host": "evil.example"})).json()["error"]["what"] == "the console is not known by this name"
    assert policy.load(site.home).paused is False


async def test_the_dashboard_of_the_same_machine_keeps_its_cookie(site: Site, owner: Guest) -> None:
    assert set(owner.http.cookies) == {"fedscale-node"}
    answer = await owner.http.get("/")
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert site.address.startswith("http://127.0.0.1:")


# --------------------------------------------------------------------------------------------------------- what it tells


async def test_what_was_asked_by_whom_and_what_became_of_it(owner: Guest) -> None:
    newest, first = (await owner.http.get("/api/asked")).json()
    assert (newest["run"], newest["tasks"], newest["answered"]) == ("run-2", {"train": 1}, 0)
    assert newest["failures"][0]["what"] == "this site answers with secure aggregation only"
    assert (first["run"], first["tasks"], first["answered"], first["app"]) == ("run-1", {"train": 2}, 2, APP)
    page = (await owner.http.get("/asked/run-1")).text
    for text in ("hub.example.org:8470", APP, "what the job runs", "heart-risk", "masked: only a sum can be read"):
        assert text in page
    assert "Not shown: too large, or no text." in page
    assert "require_secagg" in (await owner.http.get("/asked/run-2")).text


async def test_what_left_is_what_the_ledger_says(owner: Guest, home: NodeHome) -> None:
    shown = (await owner.http.get("/api/receipts")).json()
    assert shown == fedscale("node", "receipts", "--home", home.path, "--json").data[::-1]
    assert [(row["run"], row["phase"], row["round"], row["masked"]) for row in shown] == [
        ("run-1", "evaluate", 2, False),
        ("run-1", "train", 2, True),
        ("run-1", "train", 1, False),
    ]
    page = (await owner.http.get("/left")).text
    assert page.count("not covered") == 1
    assert page.count("<tr>") == 4


async def test_what_was_spent_stands_against_the_cap(owner: Guest, home: NodeHome) -> None:
    policy.save(home, policy.load(home, ["datasets.heart.epsilon=5", 'datasets.heart.units=["record"]']))
    told = (await owner.http.get("/api/accounts")).json()
    assert told["accounts"][0]["epsilon"] == pytest.approx(epsilon((SPEND, SPEND), DELTA))
    assert (told["accounts"][0]["cap"], told["not_covered"], told["ledger"]["problem"]) == (5.0, 1, "")
    page = (await owner.http.get("/privacy")).text
    assert 'max="5.0"' in page
    assert "Answers that no epsilon covers: 1" in page
    assert f"{told['ledger']['head']}" in page


async def test_a_ledger_that_was_edited_is_told_of(owner: Guest, home: NodeHome) -> None:
    with opened_database(home) as database:
        database.execute("UPDATE entry SET facts = replace(facts, 'accepted', 'rejected')")
    answer = await owner.http.get("/api/receipts")
    assert (answer.status_code, "entry 3 was edited" in answer.json()["error"]["why"]) == (400, True)


async def test_looking_at_the_ledger_waits_for_no_writer(owner: Guest, home: NodeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "PRAGMAS", ("busy_timeout=0",))
    before = (await owner.http.get("/api/accounts")).json()["ledger"]
    with opened_database(home) as database:
        database.execute("BEGIN IMMEDIATE")
        assert (await owner.http.get("/api/accounts")).json()["ledger"] == before
        assert before["head"] in (await owner.http.get("/privacy")).text
        database.execute("ROLLBACK")
    head = book.Ledger.open(home).head()
    assert before == {"problem": "", "head": f"{head.seq}:{head.digest}", "entries": head.seq}


async def test_metrics_are_for_prometheus(site: Site, stranger: Guest) -> None:
    token = (site.home.path / "web" / "scrape").read_text()
    text = (await stranger.http.get("/metrics", headers={"authorization": f"Bearer {token}"})).text
    for line in (
        "fedscale_node_running 0.0",
        "fedscale_node_paused 0.0",
        "fedscale_node_datasets 1.0",
        'fedscale_node_answers_total{verdict="accepted"} 2.0',
        'fedscale_node_answers_total{verdict="unknown"} 1.0',
        "fedscale_node_bytes_left_total 2408.0",
        'fedscale_node_failures_total{cause="policy"} 1.0',
        'fedscale_node_tasks_total{phase="train"} 3.0',
    ):
        assert line in text.splitlines()
    assert f'fedscale_node_epsilon{{population="heart",unit="record"}} {epsilon((SPEND, SPEND), DELTA)}' in text


async def test_an_open_page_hears_of_every_change(site: Site, owner: Guest) -> None:
    async with asyncio.timeout(PATIENCE), owner.http.stream("GET", "/api/events") as answer:
        lines = answer.aiter_lines()
        while not (await anext(lines)).startswith("data:"):
            pass
        tell(site.home, "connected")
        while not (await anext(lines)).startswith("data:"):
            pass
    status = (await owner.http.get("/api/status")).json()
    assert (status["running"], status["connected"]) == (False, None), "a node that does not run is not connected, whatever was last"


async def test_a_node_at_work_is_seen(site: Site, owner: Guest) -> None:
    tell(site.home, "connected")
    with site.home.locked():
        status = (await owner.http.get("/api/status")).json()
        assert status["running"]
        assert status["connected"] is not None
        assert "takes part" in (await owner.http.get("/")).text
        tell(site.home, "disconnected", error="hub.example.org:8470: no answer")
        page = (await owner.http.get("/")).text
        assert "cut off" in page
        assert "the coordinator is not there: hub.example.org:8470: no answer" in page


async def test_a_new_site_is_told_its_next_steps(home: NodeHome) -> None:
    home.datasets_file.unlink()
    async with console(home) as site, httpx.AsyncClient(base_url=site.address, trust_env=False, timeout=PATIENCE) as http:
        owner = await site.owner(http)
        page = (await owner.http.get("/")).text
        for text in ("start it: fedscale node start", "fedscale node data add", "Nobody has asked anything of this site yet."):
            assert text in page
        assert [(await owner.http.get(path)).status_code for path in ("/asked", "/left", "/privacy")] == [200] * 3
        assert not home.ledger.exists(), "looking makes no ledger"


# ------------------------------------------------------------------------------------------------------- what it changes


async def test_the_switch_pauses_the_site_as_the_command_does(owner: Guest, home: NodeHome) -> None:
    assert (await owner.ask("POST", "/api/pause", json={"paused": "true"})).json()["paused"] is True
    assert fedscale("node", "status", "--home", home.path, "--json").data["paused"] is True
    assert "Go on" in (await owner.http.get("/")).text
    assert fedscale("node", "resume", "--home", home.path, "--dry-run").code == 0
    assert policy.load(home).paused
    assert fedscale("node", "resume", "--home", home.path).out == "this site takes part again\n"
    assert (await owner.http.get("/api/status")).json()["paused"] is False
    assert fedscale("node", "pause", "--home", home.path).out == "this site is paused: nothing leaves\n"
    assert (await owner.http.get("/api/status")).json()["paused"] is True


async def test_an_app_is_approved_and_taken_off_the_list(owner: Guest, home: NodeHome) -> None:
    policy.save(home, policy.load(home, ["require_secagg=true"]))
    assert (await owner.ask("POST", f"/api/apps/{APP}", json={"approved": True})).json()["apps"] == [APP]
    assert policy.load(home).require_secagg, "the rest of the policy stays as it was"
    page = (await owner.http.get("/asked")).text
    assert "approved" in page
    other = "e" * 64
    assert (await owner.ask("POST", f"/api/apps/{other}", json={"approved": True})).json()["apps"] == [APP, other]
    assert (await owner.ask("POST", f"/api/apps/{other}", json={"approved": "false"})).json()["apps"] == [APP]
    bad = await owner.ask("POST", "/api/apps/short", json={"approved": True})
    assert (bad.status_code, bad.json()["error"]["type"]) == (400, "ConfigError")
    assert policy.load(home).apps == (APP,)


async def test_the_last_app_stays_on_the_list_because_an_empty_one_lets_any_run(owner: Guest, home: NodeHome) -> None:
    policy.save(home, policy.load(home, [f'apps=["{APP}", "{APP}"]']))
    refused = await owner.ask("POST", f"/api/apps/{APP}", json={"approved": "false"})
    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (409, "Conflict")
    assert error["what"] == "this is the last app on the list; without one any app may run"
    assert policy.load(home).apps == (APP, APP)
    assert (await owner.ask("POST", f"/api/apps/{'e' * 64}", json={"approved": "false"})).status_code == 200, "it was not on the list"
    for words in (hint.split(": ")[1].replace("'", "").split()[1:] for hint in error["hint"].split("; ")):
        assert fedscale(*words, "--home", home.path).code == 0, "each way that the hint names is one"
    assert (policy.load(home).paused, policy.load(home).apps) == (True, ())
    assert (await owner.ask("POST", f"/api/apps/{APP}", json={"approved": "false"})).json()["apps"] == [], "any may run already"


# ------------------------------------------------------------------------------------------------------------- chronicle


def test_the_chronicle_begins_anew_when_it_is_large(home: NodeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicle, "MOST_BYTES", 200)
    for number in range(12):
        tell(home, "connected", number=number)
        tell(home, "progress", fraction=0.5)
    kept = [event["number"] for event in chronicle.read(home)]
    assert kept == list(range(kept[0], 12))
    assert 2 <= len(kept) < 12
    assert oct(chronicle.file_of(home).stat().st_mode & 0o777) == "0o600"


def test_a_line_that_was_cut_off_is_left_out(home: NodeHome) -> None:
    tell(home, "connected")
    with chronicle.file_of(home).open("a") as file:
        file.write('{"at": 1, "ev\n')
    tell(home, "stopped")
    assert [event["event"] for event in chronicle.read(home)] == ["connected", "stopped"]


# ---------------------------------------------------------------------------------------------------------- command line


def test_a_real_console_is_opened_and_stopped(home: NodeHome) -> None:
    closed = fedscale("node", "open", "--home", home.path, "--json").error
    assert (closed["exit_code"], closed["what"]) == (2, "no console runs here")
    words = [sys.executable, "-m", "fedscale", "node", "console", "--home", str(home.path), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stdout is not None
            address, _, token = process.stdout.readline().partition("/login#")
            assert token
            assert fedscale("node", "open", "--home", home.path).out.startswith(f"{address}/login#")
            assert httpx.get(f"{address}/healthz", trust_env=False, timeout=PATIENCE).text == "ok\n"
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert not (home.path / "web" / "key").exists()


def test_a_taken_port_is_named(home: NodeHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = fedscale("node", "console", "--home", home.path, "--port", port, "--json")
    assert (done.code, done.error["hint"]) == (2, "choose another: --port 0")


def test_importing_the_verbs_is_light() -> None:
    code = "import sys, fedscale_client.cli_console; print([name for name in ('fastapi', 'grpc', 'sqlmodel', 'uvicorn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == "[]\n"
