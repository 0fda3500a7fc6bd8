"""The dashboard of a real server in this process, and visitors of every role who talk to it over HTTP."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher

from fedscale.identity import Role
from fedscale.web.gate import PROOF
from fedscale.web.links import link
from fedscale_server.store.store import Store
from fedscale_server.web import accounts
from fedscale_server.web.gate import COOKIE
from tests.server.running import Running

PASSWORD = "correct horse battery staple"
PATIENCE = 60.0


@dataclass
class Guest:
    """A browser without a mind of its own: cookies, and the proof of the page it loaded last."""

    http: httpx.AsyncClient
    proof: str = ""

    async def open(self, path: str = "/login") -> httpx.Response:
        """Load a page and take its proof."""
        page = await self.http.get(path)
        if found := re.search(r'name="proof" content="(\w+)"', page.text):
            self.proof = found[1]
        return page

    async def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """A request with the page's proof, unless other headers are given."""
        return await self.http.request(method, path, **{"headers": {PROOF: self.proof}, **given})

    async def login(self, name: str, password: str = PASSWORD) -> httpx.Response:
        await self.open()
        answer = await self.ask("POST", "/api/session", json={"name": name, "password": password})
        if answer.is_success:
            await self.open("/")
        return answer

    async def enter(self, token: str) -> httpx.Response:
        await self.open()
        answer = await self.ask("POST", "/api/session/link", json={"token": token})
        if answer.is_success:
            await self.open("/")
        return answer

    @property
    def token(self) -> str:
        return str(self.http.cookies.get(COOKIE) or "")


@dataclass
class Front:
    """A server with its dashboard."""

    running: Running
    guests: list[Guest]

    @property
    def address(self) -> str:
        return self.running.ready.dashboard

    @property
    def store(self) -> Store:
        return self.running.engine.store

    def guest(self, token: str = "", **options: Any) -> Guest:
        """A browser that has never been here, or one with this token for a cookie."""
        # Authorities are loaded, which takes a moment, only by those who will need them.
        made = Guest(httpx.AsyncClient(base_url=self.address, timeout=PATIENCE, trust_env=False, **{"verify": False, **options}))
        if token:
            made.http.cookies.set(COOKIE, token, domain="127.0.0.1", path="/")
        self.guests.append(made)
        return made

    async def person(self, role: Role) -> Guest:
        """Somebody of that role who has logged in: by a link who may do everything, by password the others."""
        made = self.guest()
        if role is Role.COORDINATOR:
            answer = await made.enter(link(self.running.path, time.time()).partition("#")[2])
        else:
            self.account(f"a-{role}", role)
            answer = await made.login(f"a-{role}")
        assert answer.status_code == 200, answer.text
        return made

    def account(self, name: str, role: Role = Role.AUDITOR) -> None:
        self.store.put_account(accounts.new_account(name, role, PASSWORD, datetime.now(UTC)))


@pytest.fixture(scope="session", autouse=True)
def quick_hashes() -> Any:
    """The same hash with less work, for tests log in often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "HASHER", PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1))
        yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file at the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("web") / "server.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
async def start(empty_database: Path, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts servers with these settings."""
    fronts: list[Front] = []

    async def started(**settings: Any) -> Front:
        folder = tmp_path / f"server{len(fronts)}"
        fronts.append(Front(await Running.start(folder, empty_database, **{"web": True, **settings}), []))
        return fronts[-1]

    yield started
    for front in fronts:
        for guest in front.guests:
            await guest.http.aclose()
        await front.running.close()


@pytest.fixture
async def front(start: Callable[..., Any]) -> Front:
    """A server with its dashboard on a port of its own."""
    made: Front = await start()
    # Its first answer comes when the pages are loaded.
    assert (await made.guest().http.get("/healthz")).text == "ok\n"
    return made
