"""Who may do what in a browser: every address, times everybody who may knock, times every state of their login."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from fedscale.identity import Role, secret_hash
from fedscale.web.gate import JSON_BYTES, PROOF
from fedscale_server.store.tables import Login
from fedscale_server.web import gate
from tests.web.conftest import Front, Guest

# What an empty request comes to for (coordinator, researcher, auditor). What is asked for does not exist: 404 and 400 show that the gate let it by.
LOGGED_IN: dict[str, tuple[int, int, int]] = {
    "GET /": (200, 200, 200),
    "GET /runs": (200, 200, 200),
    "GET /runs/{run}": (404, 404, 404),
    "GET /runs/{run}/card": (404, 404, 404),
    "GET /sites": (200, 200, 200),
    "GET /models": (200, 200, 200),
    "GET /privacy": (200, 200, 200),
    "GET /compare": (400, 400, 400),
    "GET /audit": (200, 200, 200),
    "GET /api/audit": (200, 200, 200),
    "GET /api/audit/head": (200, 200, 200),
    "GET /metrics": (200, 200, 200),
    "GET /api/openapi.json": (200, 200, 200),
    "GET /api/session": (200, 200, 200),
    "GET /api/status": (200, 200, 200),
    "GET /api/events": (200, 200, 200),
    "GET /api/sites": (200, 200, 200),
    "DELETE /api/sites/{name}": (404, 403, 403),
    "GET /api/projects": (200, 200, 200),
    "POST /api/projects": (400, 403, 403),
    "POST /api/projects/{project}/invitations": (400, 403, 403),
    "GET /api/runs": (200, 200, 200),
    "POST /api/runs": (400, 400, 403),
    "GET /api/runs/{run}": (404, 404, 404),
    "GET /api/runs/{run}/curves": (404, 404, 404),
    "GET /api/runs/{run}/timeline": (404, 404, 404),
    "GET /api/runs/{run}/record": (404, 404, 404),
    "GET /api/runs/{run}/events": (404, 404, 404),
    "GET /api/runs/{run}/report": (404, 404, 404),
    "GET /api/runs/{run}/card": (404, 404, 404),
    "GET /api/runs/{run}/model": (404, 404, 403),
    "POST /api/runs/{run}/state": (400, 400, 403),
    "DELETE /api/session": (204, 204, 204),
}
PUBLIC = {
    "GET /healthz": 200,
    "GET /readyz": 200,
    "GET /static/{name}": 404,
    "GET /login": 200,
    "POST /api/session": 400,
    "POST /api/session/link": 400,
}
ROLES = (Role.COORDINATOR, Role.RESEARCHER, Role.AUDITOR)
CHANGES = [key for key in (*LOGGED_IN, *PUBLIC) if not key.startswith("GET ")]


async def code(guest: Guest, key: str, **given: Any) -> int:
    """What an empty request ends with; of a stream only the beginning is read."""
    method, _, path = key.partition(" ")
    for name in ("run", "name", "project"):
        path = path.replace(f"{{{name}}}", "nothing-of-that-name")
    request = guest.http.build_request(method, path, **{"headers": {PROOF: guest.proof}, **given})
    answer = await guest.http.send(request, stream=True)
    await answer.aclose()
    return answer.status_code


async def codes(guest: Guest, **given: Any) -> dict[str, int]:
    return {key: await code(guest, key, **given) for key in LOGGED_IN}


def turned_away() -> dict[str, int]:
    """What somebody who is not logged in gets: people are sent to the login, programs are refused."""
    return {key: 401 if " /api/" in key or key == "GET /metrics" else 303 for key in LOGGED_IN}


async def test_every_address_stands_in_the_matrix_and_in_the_table(front: Front) -> None:
    coordinator = await front.person(Role.COORDINATOR)
    served = (await coordinator.http.get("/api/openapi.json")).json()["paths"]
    offered = {f"{method.upper()} {path}" for path, methods in served.items() for method in methods}
    assert set(LOGGED_IN) | set(PUBLIC) == set(gate.RIGHTS)
    assert offered == {key for key in gate.RIGHTS if " /api/" in key} - {"GET /api/openapi.json"}


@pytest.mark.parametrize("role", ROLES)
async def test_every_role_may_do_exactly_its_part(front: Front, role: Role) -> None:
    person = await front.person(role)
    assert await codes(person) == {key: expected[ROLES.index(role)] for key, expected in LOGGED_IN.items()}
    assert await codes(person) == turned_away(), "the last row of the table has logged out"


async def test_public_addresses_need_no_login(front: Front) -> None:
    stranger = front.guest()
    await stranger.open()
    assert {key: await code(stranger, key) for key in PUBLIC} == PUBLIC


async def test_strangers_and_holders_of_made_up_or_expired_tokens_are_turned_away(front: Front) -> None:
    now = datetime.now(UTC)
    row: dict[str, Any] = {"account": "grace", "role": "coordinator", "created": now - timedelta(hours=13)}
    front.store.open_login(Login(token_hash=secret_hash("expired"), expires_at=now - timedelta(seconds=1), **row))
    visited = front.guest()
    await visited.open()
    for guest in (front.guest(), visited, front.guest("made-up"), front.guest("expired")):
        assert await codes(guest) == turned_away()


async def test_a_login_ends_when_its_account_is_removed_or_changed(front: Front) -> None:
    for change in (lambda: front.account("a-researcher", Role.AUDITOR), lambda: front.store.drop_account("a-researcher")):
        person = await front.person(Role.RESEARCHER)
        assert await code(person, "GET /api/status") == 200
        change()
        assert await codes(person) == turned_away()


async def test_nothing_changes_without_the_proof_of_the_page(front: Front) -> None:
    other = await front.person(Role.RESEARCHER)
    for key in CHANGES:
        person = await front.person(Role.COORDINATOR)
        planted = [{}, {PROOF: ""}, {PROOF: other.proof}]
        planted += [{PROOF: person.proof, "origin": origin} for origin in ("https://evil.example", "http://[", f"{front.address}.evil.example")]
        assert [await code(person, key, headers=headers) for headers in planted] == [403] * len(planted), key
        wanted = PUBLIC[key] if key in PUBLIC else LOGGED_IN[key][0]
        assert await code(person, key, headers={PROOF: person.proof, "origin": front.address}) == wanted, key


async def test_what_is_in_no_table_is_refused(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    person = await front.person(Role.COORDINATOR)
    monkeypatch.delitem(gate.TABLE._patterns, "GET /sites")
    assert await code(person, "GET /sites") == 404
    for path in ("/docs", "/redoc", "/openapi.json", "/api", "/static/../pages.py", "/static/%2e%2e/pages.py", "//etc/passwd", "/runs/a/b"):
        assert (await person.http.get(path)).status_code == 404
    for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "DELETE"):
        assert (await person.ask(method, "/runs")).status_code == 404
    stranger = front.guest()
    assert (await stranger.http.get("/docs")).status_code == 303


async def test_another_name_for_this_machine_gets_nothing(front: Front) -> None:
    person = await front.person(Role.COORDINATOR)
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "", "["):
        answer = await person.http.get("/api/status", headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["what"]) == (400, "the dashboard is not known by this name")
    for host in ("localhost", "127.0.0.1:80", "[::1]:8472", "LOCALHOST:1"):
        assert (await person.http.get("/api/status", headers={"host": host})).status_code == 200


def headers_of(answer: httpx.Response) -> tuple[str | None, ...]:
    names = ("content-security-policy", "x-content-type-options", "referrer-policy", "cache-control", "cross-origin-opener-policy")
    return tuple(answer.headers.get(name) for name in names)


async def test_every_answer_keeps_the_browser_from_helping_others(front: Front) -> None:
    person, stranger = await front.person(Role.COORDINATOR), front.guest()
    for guest, path in (
        (person, "/"),
        (person, "/api/status"),
        (person, "/runs/none"),
        (stranger, "/login"),
        (stranger, "/"),
        (stranger, "/api/runs"),
    ):
        policy, *others = headers_of(await guest.http.get(path))
        assert (policy or "").startswith("default-src 'self';")
        assert "unsafe" not in (policy or "")
        assert others == ["nosniff", "no-referrer", "no-store", "same-origin"]


async def test_a_body_that_is_too_large_is_not_heard_out(front: Front) -> None:
    person = await front.person(Role.COORDINATOR)
    answer = await person.ask("POST", "/api/projects", content=b'{"name": "' + b"x" * JSON_BYTES + b'"}')
    assert answer.status_code == 400
    assert len(answer.content) < 1000


async def test_metrics_open_to_whoever_has_the_token_and_nothing_else_does(front: Front) -> None:
    token = (front.running.path / "web" / "scrape").read_text()
    prometheus = front.guest(headers={"authorization": f"Bearer {token}"})
    assert await code(prometheus, "GET /metrics") == 200
    assert await codes(prometheus) == turned_away() | {"GET /metrics": 200}
    for wrong in ("", token, "Bearer", f"Bearer {token}x", f"Basic {token}"):
        assert await code(front.guest(headers={"authorization": wrong}), "GET /metrics") == 401
