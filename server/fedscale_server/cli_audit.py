"""``fedscale audit verify|tail|export``: who did what at this coordinator, and whether the record of it is whole."""

from __future__ import annotations

import getpass
import json as json_text
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from fedscale import console, files
from fedscale.cli.options import Json
from fedscale.errors import Conflict
from fedscale_server.cli_start import DEFAULT_HOME, ServerHome
from fedscale_server.deeds import Deed, head_of
from fedscale_server.home import Home
from fedscale_server.trail import Trail

COLUMNS = (">line", "at (UTC)", "who", "by way of", "what", "to what", "facts")


def verify(
    *,
    home: ServerHome = DEFAULT_HOME,
    head: Annotated[str, typer.Option(metavar="NUMBER:HASH", help="An end of the trail noted earlier, which it must still contain.")] = "",
    json: Json = False,
) -> None:
    """Check every line of the audit trail, the chain and its end."""
    seq, digest = _trail(home).verify(head_of(head) if head else None)
    data = {"lines": seq, "head": f"{seq}:{digest}"}
    console.emit(data, f"the audit trail verifies; it ends with {seq}:{digest}", as_json=json)


def tail(
    *,
    home: ServerHome = DEFAULT_HOME,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many, the newest.")] = 20,
    who: Annotated[str, typer.Option(help="Only of this person or site.")] = "",
    json: Json = False,
) -> None:
    """Show what was done last: logins, invitations, submissions, revocations."""
    deeds = _trail(home).newest(lines, who=who)[::-1]
    rows = [(deed.seq, deed.at[:19], deed.who, deed.door, deed.action, deed.target, told(deed)) for deed in deeds]
    console.emit([asdict(deed) for deed in deeds], console.table(COLUMNS, rows) if rows else "nothing was done yet", as_json=json)


def export(
    file: Annotated[Path, typer.Argument(help="Where to write it; an existing file is left alone.")],
    *,
    home: ServerHome = DEFAULT_HOME,
    json: Json = False,
) -> None:
    """Write the audit trail, verified, into a file of JSON lines."""
    if file.exists():
        raise Conflict("there is a file of that name already", where=str(file))
    trail = _trail(home)
    seq, digest = trail.verify()
    files.write(file, b"".join(json_text.dumps(asdict(deed), separators=(",", ":")).encode() + b"\n" for deed in islice(trail.read(), seq)))
    console.emit({"file": str(file), "lines": seq, "head": f"{seq}:{digest}"}, f"{seq} lines in {file}; their end is {seq}:{digest}", as_json=json)


def told(deed: Deed) -> str:
    """The facts of a line, in one line."""
    return ", ".join(f"{name} {value}" for name, value in deed.facts.items() if value not in {"", None})


def noted(home: Path, action: str, target: str, **facts: str) -> None:
    """Write down what whoever sits at the coordinator's machine is about to do there.

    Raises:
        Unreachable: the disk refuses, or the trail is damaged; so it must not be done.
    """
    _trail(home).insist(f"system user {getpass.getuser()}", "command line", action, target, **facts)


def _trail(home: Path) -> Trail:
    """The trail of a coordinator.

    Raises:
        ConfigError: there is no coordinator.
    """
    Home.load(home)
    return Trail(home, lambda: datetime.now(UTC))
