"""Who may log in to the dashboard, for those who only look: SQLite is read as it is, without the database library, which takes longest to load."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from fedscale.cli.lazy import later

if TYPE_CHECKING:
    from fedscale_server.store.store import Store

SQLITE = "sqlite:///"
ACCOUNTS = "SELECT name, role, created FROM account ORDER BY name"
BUSY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in with a password, and since when."""

    name: str
    role: str
    since: datetime


def users(url: str) -> list[User]:
    """All users of the database at ``url``, by name.

    Raises:
        ConfigError, Unreachable: the database cannot be opened.
    """
    # A file that is missing, damaged or of another release, or a URL with more than a path, is left to the store.
    with suppress(sqlite3.Error):
        if url.startswith(SQLITE) and not {"?", "%"} & set(url):
            return _stored(url.removeprefix(SQLITE))
    store: Store = later("fedscale_server.store.store:Store").open(url)
    try:
        return [User(row.name, row.role, row.created) for row in store.accounts()]
    finally:
        store.close()


def _stored(path: str) -> list[User]:
    with closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
        return [User(name, role, datetime.fromisoformat(since).replace(tzinfo=UTC)) for name, role, since in connection.execute(ACCOUNTS)]
