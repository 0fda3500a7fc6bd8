"""``fedscale server user``: who may log in to the dashboard with a password."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json
from fedscale_server.cli_audit import noted
from fedscale_server.cli_start import DEFAULT_HOME, Database, ServerHome
from fedscale_server.home import Home
from fedscale_server.options import moment
from fedscale_server.roster import users
from fedscale_server.settings import load

if TYPE_CHECKING:
    from fedscale_server.store.store import Store

PASSWORD_BYTES = 15

Name = Annotated[str, typer.Argument(help="Lower-case letters, digits, dots, dashes and underscores.")]


def add(
    name: Name,
    *,
    role: Annotated[Literal["coordinator", "researcher", "auditor"], typer.Option(help="What the user may do.")],
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin in place of making one.")] = False,
    home: ServerHome = DEFAULT_HOME,
    database: Database = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let somebody log in to the dashboard, or change role and password."""
    password = sys.stdin.readline().rstrip("\n") if password_stdin else secrets.token_urlsafe(PASSWORD_BYTES)
    account = later("fedscale_server.web.accounts:new_account")(name, role, password, datetime.now(UTC))
    with _store(home, database) as store:
        if not dry_run:
            store.put_account(account, partial(noted, home, "user added", name, role=role))
    shown = {} if password_stdin or dry_run else {"password": password}
    text = f"would add {name} as {role}" if dry_run else shown.get("password", f"added {name} as {role}")
    console.emit({"name": name, "role": role, **shown, "dry_run": dry_run}, text, as_json=json)
    if shown:
        console.note(f"this is the password of {name} ({role}); it is shown this once")


def list_(*, home: ServerHome = DEFAULT_HOME, database: Database = None, json: Json = False) -> None:
    """List who may log in to the dashboard."""
    found = [(user.name, user.role, user.since.timestamp()) for user in users(_url(home, database))]
    nobody = "no users; the operator logs in with: fedscale server open"
    shown = console.table(("user", "role", "since"), [(name, role, moment(since)) for name, role, since in found]) if found else nobody
    console.emit([{"name": name, "role": role, "since": since} for name, role, since in found], shown, as_json=json)


def remove(name: Name, *, home: ServerHome = DEFAULT_HOME, database: Database = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Shut a user out of the dashboard at once."""
    with _store(home, database) as store:
        if not dry_run:
            store.drop_account(name, partial(noted, home, "user removed", name))
    console.emit({"name": name, "dry_run": dry_run}, f"would remove {name}" if dry_run else f"{name} is shut out", as_json=json)


@contextmanager
def _store(home: ServerHome, database: Database) -> Iterator[Store]:
    """The database of a coordinator, which may be running."""
    store: Store = later("fedscale_server.store.store:Store").open(_url(home, database))
    try:
        yield store
    finally:
        store.close()


def _url(home: Path, database: str | None) -> str:
    """Where the accounts are.

    Raises:
        ConfigError: no coordinator lives in that folder.
    """
    Home.load(home)
    return load(home, {"database": database}).url(home)
