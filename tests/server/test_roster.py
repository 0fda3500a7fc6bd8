"""The users of the dashboard, read with and without the database library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedscale.errors import ConfigError
from fedscale_server.roster import User, users
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Account
from tests.server.samples import NOW


def test_users_are_the_accounts_of_either_database(store: Store, url: str) -> None:
    assert users(url) == []
    for name, role in (("linus", "researcher"), ("grace", "auditor")):
        store.put_account(Account(name=name, role=role, password="hash", created=NOW))
    assert users(url) == [User("grace", "auditor", NOW), User("linus", "researcher", NOW)]
    assert users(url) == [User(row.name, row.role, row.created) for row in store.accounts()]


def test_reading_them_from_a_file_loads_no_database_library(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/odd name #1/server.db"
    Store.open(url).close()
    code = f"import sys; from fedscale_server.roster import users\nprint(users({url!r}), {{'sqlalchemy', 'sqlmodel', 'alembic'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] set()\n"


def test_a_database_that_was_never_opened_is_made_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    assert users(f"sqlite:///{tmp_path}/new.db") == []
    (tmp_path / "bad.db").write_text("no database at all, and long enough to be read as one" * 30)
    with pytest.raises(ConfigError, match="cannot be opened"):
        users(f"sqlite:///{tmp_path}/bad.db")
