"""Opens the database, SQLite or PostgreSQL, and brings its schema up to date.

A warm start must be quick, so alembic is loaded only when the schema is not the newest.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from fedscale.errors import ConfigError, Unreachable

HEAD = "0006"  # the newest file in migrations/versions
MIGRATIONS = Path(__file__).with_name("migrations")
PRAGMAS = ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
CONNECT_SECONDS = 10
# Whoever is stopped in the middle of a transaction would keep the lease's row from all others, and so would one whose network is gone.
IDLE = "SET idle_in_transaction_session_timeout = '8s'"
WAITING = "SET lock_timeout = '30s'"
ALIVE = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 10_000}
WRITE = {"fedscale_write": True}


def connect(url: str) -> Engine:
    """An engine for ``sqlite:///path`` or ``postgresql://user:password@host/name``; its schema is at the newest version.

    Raises:
        ConfigError: not such a URL, no driver for it, not a database, or one of a later release.
        Unreachable: the database does not answer.
    """
    parsed = _parsed(url)
    local = parsed.get_backend_name() == "sqlite"
    try:
        engine = _sqlite(parsed) if local else _postgresql(parsed)
        with ExitStack() as undo:
            undo.callback(engine.dispose)
            _upgrade(engine)
            undo.pop_all()
    except ModuleNotFoundError as error:
        raise ConfigError("the database needs a driver", why=str(error), hint="pip install 'fedscale-fl[postgres]'") from None
    except (OSError, DatabaseError) as error:
        kind = Unreachable if isinstance(error, OperationalError) and not local else ConfigError
        reason = str(error.orig if isinstance(error, DatabaseError) else error).splitlines()[0]
        raise kind("the database cannot be opened", where=parsed.render_as_string(hide_password=True), why=reason) from None
    return engine


def _parsed(url: str) -> URL:
    """The URL with the driver that is used."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("the database's URL cannot be read", hint="write sqlite:///PATH or postgresql://USER@HOST/NAME") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError("a database in memory would forget every run", hint="write sqlite:///PATH")
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(f"databases of the kind '{backend}' are not supported", hint="use SQLite or PostgreSQL")
    return parsed.set(drivername="sqlite+pysqlite" if backend == "sqlite" else "postgresql+psycopg")


def _postgresql(url: URL) -> Engine:
    """An engine that notices broken connections and gives up on a host that does not answer."""
    arguments = {"connect_timeout": CONNECT_SECONDS, **ALIVE}
    given = {name: value for name, value in arguments.items() if name not in url.query}
    engine = create_engine(url, pool_pre_ping=True, connect_args=given)
    event.listen(engine, "connect", _impatient)
    return engine


def _impatient(connection: Any, _: object) -> None:
    """Set up a new connection."""
    connection.execute(IDLE)
    connection.execute(WAITING)
    connection.commit()


def _sqlite(url: URL) -> Engine:
    """An engine on a file that is private from its first byte."""
    path = Path(url.database or "")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    engine = create_engine(url)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _: object) -> None:
    """Set up a new connection; the driver shall not begin transactions of its own, later than we do."""
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """Writers take SQLite's lock at once: one that reads first could lose what it read before it writes."""
    writes = connection.get_execution_options().get("fedscale_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(engine: Engine) -> None:
    """Bring the schema to ``HEAD``, in one transaction."""
    with engine.connect() as connection:
        current = connection.scalar(text("SELECT version_num FROM alembic_version")) if inspect(connection).has_table("alembic_version") else None
    if current == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.execution_options(**WRITE).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, HEAD)
    except CommandError:
        raise ConfigError(f"the database has the schema '{current}' of a later release", hint="install that release") from None
