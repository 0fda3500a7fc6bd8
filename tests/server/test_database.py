"""How the database is opened: what is refused, what is set up, what a warm start costs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from fedscale.errors import ConfigError, FedscaleError, Unreachable
from fedscale_server.store import database
from fedscale_server.store.store import Store
from tests.server.samples import NOW, add_run


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("not a url", "the database's URL cannot be read"),
        ("", "the database's URL cannot be read"),
        ("sqlite://", "in memory would forget"),
        ("sqlite:///:memory:", "in memory would forget"),
        ("mysql://root@localhost/fedscale", "databases of the kind 'mysql' are not supported"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Store.open(url)


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the database cannot be opened"):
        Store.open(f"sqlite:///{tmp_path}")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way")
    with pytest.raises(ConfigError, match=r"File exists|Not a directory"):
        Store.open(f"sqlite:///{tmp_path / 'home' / 'server.db'}")


def test_another_file_is_no_database_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear colleague, " * 200)
    with pytest.raises(ConfigError, match="not a database"):
        Store.open(f"sqlite:///{path}")
    assert path.read_text() == "Dear colleague, " * 200


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        Store.open(f"postgresql://fedscale:hunter2@/fedscale?host={tmp_path}")
    assert caught.value.where.startswith("postgresql+psycopg://fedscale:***@/fedscale")
    assert "hunter2" not in str(caught.value)
    assert "No such file" in caught.value.why


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedscale-fl\[postgres\]'"):
        Store.open("postgresql://fedscale@localhost/fedscale")


@pytest.mark.parametrize(("query", "expected"), [("", {"connect_timeout": 10}), ("?connect_timeout=2", {})])
def test_a_host_is_not_waited_for_without_end(query: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def engine(url: object, **options: object) -> Engine:
        asked.append(options)
        return create_engine("sqlite://")

    monkeypatch.setattr(database, "create_engine", engine)
    database._postgresql(database._parsed(f"postgresql://fedscale@host/fedscale{query}"))
    assert asked == [{"pool_pre_ping": True, "connect_args": expected | database.ALIVE}]


def test_the_driver_need_not_be_named(url: str, opened: Callable[[str], Store]) -> None:
    backend, _, place = url.partition("://")
    assert opened(f"{backend.partition('+')[0]}://{place}").projects() == []


def test_a_new_file_is_private_and_so_is_its_folder(tmp_path: Path, opened: Callable[[str], Store]) -> None:
    path = tmp_path / "new" / "server.db"
    opened(f"sqlite:///{path}").create_project("ward", NOW)
    modes = {entry.name: oct(entry.stat().st_mode & 0o777) for entry in (path.parent, *path.parent.iterdir())}
    assert modes == {"new": "0o700", "server.db": "0o600", "server.db-wal": "0o600", "server.db-shm": "0o600"}


def test_each_sqlite_connection_is_durable_and_checks_references(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'server.db'}")
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            found = {name: connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")}
            assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    engine.dispose()


def test_a_writer_waits_for_another_process(tmp_path: Path, opened: Callable[[str], Store]) -> None:
    path = tmp_path / "server.db"
    store = opened(f"sqlite:///{path}")
    store.create_project("ward", NOW)
    add_run(store, "one")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.append, "one", "lost", {}, NOW)
        assert store.journal("one") == [], "readers do not wait for a writer"
        other.execute("COMMIT")
        assert waiting.result(30) == 1
    other.close()


def test_a_failed_block_writes_nothing(store: Store) -> None:
    def fail() -> None:
        with store._write() as session:
            session.connection().execute(text("DELETE FROM project"))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert [name for name, _, _ in store.projects()] == ["ward"]


def test_a_failed_writer_lets_the_next_one_in(store: Store) -> None:
    for _ in range(20):
        with pytest.raises(FedscaleError):
            store.append("ghost", "lost", {}, NOW)
    store.create_project("clinic", NOW)
    assert "clinic" in [name for name, _, _ in store.projects()]


def test_a_closed_store_holds_no_connection(store: Store) -> None:
    store.projects()
    store.close()
    assert store._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert store.projects() == [("ward", 0, 0)], "it opens new ones when it is used again"


def test_a_broken_upgrade_leaves_nothing_behind(empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of an upgrade is one transaction: it can be tried again with a mended release."""
    script = tmp_path / "100%"
    (script / "versions").mkdir(parents=True)
    for name in ("env.py", "versions/0001_initial.py"):
        (script / name).write_text((database.MIGRATIONS / name).read_text())
    (script / "versions" / "0002_broken.py").write_text(
        "from alembic import op\nrevision = '0002'\ndown_revision = '0001'\ndef upgrade():\n"
        "    op.execute('CREATE TABLE half (n INTEGER)')\n    op.execute('NONSENSE')\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", script)
        patched.setattr(database, "HEAD", "0002")
        with pytest.raises(ConfigError, match="syntax error"):
            Store.open(empty_url)
    engine = database.connect(empty_url)
    assert "half" not in inspect(engine).get_table_names()
    engine.dispose()


def run_python(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_warm_start_does_not_load_alembic(url: str) -> None:
    script = "import sys; from fedscale_server.store.store import Store; Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    assert run_python(script, url) == "False"


def test_a_cold_start_does(empty_url: str) -> None:
    script = "import sys; from fedscale_server.store.store import Store; Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    assert run_python(script, empty_url) == "True"


def test_making_a_home_loads_no_database() -> None:
    script = "import sys; import fedscale_server.home; print(sorted({'sqlmodel', 'sqlalchemy', 'alembic', 'grpc', 'numpy'} & set(sys.modules)))"
    assert run_python(script) == "[]"
