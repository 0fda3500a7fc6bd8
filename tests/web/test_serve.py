"""The dashboard's port: where it listens, TLS beyond this machine, what is loaded when, and that it stops no federation."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedscale.errors import ConfigError
from fedscale_server.home import Home
from fedscale_server.settings import Settings
from fedscale_server.web import serve
from fedscale_server.web.serve import open_door
from tests.command import fedscale
from tests.server.running import soon
from tests.web.conftest import PASSWORD, Front

PATIENCE = 60.0


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_on_this_machine_it_speaks_plainly_and_beyond_it_never() -> None:
    found = {}
    for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::"):
        door = open_door(Settings(web_host=host, web_port=0, hosts=("hub.example.org", "127.0.0.1")))
        assert door is not None
        door.listener.close()
        found[host] = door.address.rpartition(":")[0]
        assert door.tls is door.address.startswith("https://")
    assert found == {
        "127.0.0.1": "http://127.0.0.1",
        "localhost": "http://localhost",
        "::1": "http://[::1]",
        "0.0.0.0": "https://hub.example.org",
        "::": "https://hub.example.org",
    }


def test_a_taken_port_is_replaced_by_another(taken: int) -> None:
    door = open_door(Settings(web_port=taken))
    assert door is not None
    assert door.listener.getsockname()[1] != taken
    door.listener.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="the dashboard cannot listen at 192.0.2.1"):
        open_door(Settings(web_host="192.0.2.1"))


def test_no_dashboard_where_none_is_wanted() -> None:
    assert open_door(Settings(web=False)) is None


async def test_beyond_this_machine_it_proves_itself_with_the_servers_certificate(start: Callable[..., Any]) -> None:
    front: Front = await start(web_host="0.0.0.0", hosts=("localhost", "127.0.0.1"))
    authority = ssl.create_default_context(cafile=str(front.running.path / "admin" / "ca.pem"))
    assert front.address.startswith("https://localhost:")
    front.account("grace")
    guest = front.guest(verify=authority)
    answer = await guest.login("grace")
    assert answer.status_code == 200
    assert "Secure" in answer.headers["set-cookie"]
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    plain = front.address.replace("https:", "http:")
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.HTTPError):
            await client.get(plain)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get(front.address)


async def test_a_renewed_certificate_is_shown_without_a_restart(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "RENEW_SECONDS", 0.05)
    front: Front = await start(web_host="0.0.0.0", hosts=("localhost", "127.0.0.1"))
    authority = str(front.running.path / "admin" / "ca.pem")
    assert (await front.guest(verify=ssl.create_default_context(cafile=authority)).http.get("/healthz")).text == "ok\n"
    home, place = Home.load(front.running.path), (front.address.rpartition("/")[2].rpartition(":")[0], int(front.address.rpartition(":")[2]))
    before = await asyncio.to_thread(ssl.get_server_certificate, place)
    home._certify(front.running.settings, datetime.now(UTC))

    async with asyncio.timeout(PATIENCE):
        while await asyncio.to_thread(ssl.get_server_certificate, place) == before:
            await asyncio.sleep(0.05)
    shown = ssl.PEM_cert_to_DER_cert(await asyncio.to_thread(ssl.get_server_certificate, place))
    assert shown == ssl.PEM_cert_to_DER_cert(home.server_pems()[1].decode())


async def test_a_dashboard_that_cannot_be_loaded_leaves_the_federation_alone(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(target: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{target}'")

    monkeypatch.setattr(serve, "later", broken)
    front: Front = await start()
    ada = await front.running.node("ada")
    await soon(front.running.begun(ada))
    assert ada.connected


async def test_it_stops_with_the_server_whoever_is_still_looking(front: Front) -> None:
    front.account("grace")
    guest = front.guest()
    await guest.login("grace")

    async def look() -> list[str]:
        async with guest.http.stream("GET", "/api/events") as answer:
            return [line async for line in answer.aiter_lines()]

    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    assert (front.running.path / "web" / "address").read_text() == front.address
    await soon(front.running.stop())
    await soon(asyncio.wait({looking}))
    assert not (front.running.path / "web" / "address").exists()
    with pytest.raises(httpx.ConnectError):
        await front.guest().http.get("/healthz")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("app", ("fastapi", "starlette", "uvicorn", "jinja2", "argon2", "prometheus_client")), ("cli_open", ("sqlmodel", "grpc", "fastapi", "argon2"))],
)
def test_what_is_heavy_is_loaded_behind_the_open_port_only(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, fedscale_server.{module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == "[]\n"


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A coordinator's home here."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEDSCALE_PROFILE", "FEDSCALE_SERVER_HOME", "FEDSCALE_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    assert fedscale("server", "init", "--port", "0", "--enrolment-port", "0", "--web-port", "0").code == 0
    return tmp_path / "fedscale-server"


def test_users_are_added_listed_changed_and_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fedscale("server", "user", "list").out.startswith("no users")
    made = fedscale("server", "user", "add", "grace", "--role", "auditor")
    password = made.out.strip()
    assert len(password) >= 20
    assert "shown this once" in made.err
    assert fedscale("server", "user", "add", "linus", "--role", "researcher", "--json").data.keys() == {"name", "role", "password", "dry_run"}
    assert [(user["name"], user["role"]) for user in fedscale("server", "user", "list", "--json").data] == [
        ("grace", "auditor"),
        ("linus", "researcher"),
    ]
    assert fedscale("server", "user", "remove", "linus", "--dry-run").code == 0
    assert fedscale("server", "user", "remove", "linus").code == 0
    missing = fedscale("server", "user", "remove", "grac", "--json").error
    assert (missing["exit_code"], missing["hint"]) == (6, "did you mean 'grace'?")
    assert password not in (home / "server.db").read_bytes().decode("latin-1")


def test_a_password_may_come_from_stdin_and_is_not_shown(home: Path) -> None:
    words = [sys.executable, "-m", "fedscale", "server", "user", "add", "grace", "--role", "auditor", "--password-stdin"]
    done = subprocess.run(words, input=f"{PASSWORD}\n", capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "added grace as auditor\n")
    short = subprocess.run(words, input="short\n", capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert short.returncode == 4
    assert "shorter than 12 characters" in short.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["add", "admin", "--role", "auditor"], 6),
        (["add", "No Name", "--role", "auditor"], 2),
        (["add", "grace", "--role", "node"], 2),
        (["add", "grace"], 2),
    ],
)
def test_users_that_cannot_be_added(home: Path, words: list[str], code: int) -> None:
    assert fedscale("server", "user", *words).code == code
    assert fedscale("server", "user", "list", "--json").data == []


def test_without_a_home_or_a_dashboard_the_next_step_is_named(home: Path, tmp_path: Path) -> None:
    done = fedscale("server", "open")
    assert (done.code, "start it: fedscale server start" in done.err) == (2, True)
    assert fedscale("server", "user", "list", "--home", tmp_path / "nowhere").code == 2


def test_ports_of_a_coordinator_are_three(home: Path) -> None:
    done = fedscale("server", "start", "--port", "9000", "--web-port", "9000")
    assert done.code == 2
    assert "'web_port' is another port too" in done.err


def test_a_real_coordinator_hands_out_a_link_that_works_until_it_is_killed(home: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fedscale", "server", "start", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ) as process:
        try:
            assert process.stdout is not None
            assert '"dashboard":"http://127.0.0.1:' in process.stdout.readline().replace(" ", "")
            ends = time.monotonic() + PATIENCE
            while fedscale("server", "open").code and time.monotonic() < ends:
                time.sleep(0.05)
            opened = fedscale("server", "open", "--json").data
            address = opened["link"].partition("/login#")[0]
            with httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE) as client:
                assert client.get("/healthz").text == "ok\n"
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
            killed = fedscale("server", "open", "--json").error
            assert (killed["exit_code"], killed["hint"]) == (3, "is it running? fedscale server start")
        finally:
            process.kill()
