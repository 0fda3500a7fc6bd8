"""Databases for the tests of the server: SQLite and a real PostgreSQL, a fresh one for each test."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from fedscale_server.store.store import Store
from tests.conftest import postgres_bin, requires
from tests.server.samples import NOW

BACKENDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.requires("postgresql")))
TEMPLATE = "fedscale_head"


class Postgres:
    """A server of our own, reached through a socket in its folder, so that no port can be taken."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self._binaries = folder, binaries
        self._user: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, "postgres")
            self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def command(self, program: str, *arguments: str) -> None:
        line = [*self._user, str(self._binaries / program), "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, cwd=self.folder)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        self.command("initdb", "-U", "fedscale", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=200"
        self.command("pg_ctl", "-w", "-t", "30", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.command("pg_ctl", "-m", "immediate", "stop")

    def create(self, name: str, template: str = "template0") -> str:
        """A new database; returns its URL."""
        with psycopg.connect(host=str(self.folder), user="fedscale", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://fedscale@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    requires("postgresql")
    binaries = postgres_bin()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="fedscale-"))
    server = Postgres(folder, binaries)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_at_head(postgres: Postgres) -> Postgres:
    """The server with a template database at the newest schema."""
    Store.open(postgres.create(TEMPLATE)).close()
    return postgres


@pytest.fixture(scope="session")
def sqlite_at_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file at the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("head") / "server.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each kind of database that the server supports."""
    return str(request.param)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without any table."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path / 'server.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.create(f"empty_{secrets.token_hex(6)}")


@pytest.fixture
def url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database with the newest schema and no rows."""
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_at_head"), tmp_path / "server.db")
        return f"sqlite:///{tmp_path / 'server.db'}"
    postgres: Postgres = request.getfixturevalue("postgres_at_head")
    return postgres.create(f"head_{secrets.token_hex(6)}", TEMPLATE)


@pytest.fixture
def opened() -> Iterator[Callable[[str], Store]]:
    """``Store.open`` that closes by itself."""
    stores: list[Store] = []

    def open_store(url: str) -> Store:
        stores.append(Store.open(url))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(url: str, opened: Callable[[str], Store]) -> Store:
    """A store on each kind of database, with one project ``ward``."""
    made = opened(url)
    made.create_project("ward", NOW)
    return made
