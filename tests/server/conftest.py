"""Databases for the tests of the server: SQLite and a real PostgreSQL, with nothing in them when a test begins."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from fedscale_server.store.store import Store
from fedscale_server.store.tables import Table
from tests.conftest import postgres_bin, requires
from tests.server.running import Running
from tests.server.samples import NOW

BACKENDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.requires("postgresql")))
HEAD = "head"


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
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=200, cwd=self.folder)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        self.command("initdb", "-U", "fedscale", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=200"
        self.command("pg_ctl", "-w", "-t", "180", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.command("pg_ctl", "-m", "immediate", "stop")

    def execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self.folder), user="fedscale", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, schema: str) -> str:
        """A new schema, which is a database to whoever sees no other; returns its URL."""
        self.execute(f"CREATE SCHEMA {schema}")
        return self.url(schema)

    def url(self, schema: str) -> str:
        return f"postgresql+psycopg://fedscale@/postgres?host={self.folder}&options=-csearch_path%3D{schema}"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server of PostgreSQL for as long as the block runs."""
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
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_at_head(postgres: Postgres) -> Postgres:
    """The server with a database at the newest version, which tests use one after the other."""
    Store.open(postgres.create(HEAD)).close()
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
    """URL of a database at the newest version and without rows; tests leave its tables as they are."""
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_at_head"), tmp_path / "server.db")
        return f"sqlite:///{tmp_path / 'server.db'}"
    postgres: Postgres = request.getfixturevalue("postgres_at_head")
    tables = ", ".join(f"{HEAD}.{table}" for table in Table.metadata.tables)
    postgres.execute(f"SET lock_timeout = '20s'; TRUNCATE {tables}")
    return postgres.url(HEAD)


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


@pytest.fixture
async def server(sqlite_at_head: Path, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with a project ``ward`` and a bundle, on free ports."""
    running = await Running.start(tmp_path / "server", sqlite_at_head)
    yield running
    await running.close()
