"""What the commands of a node share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fedscale import console
from fedscale_client.home import NodeHome

HOME = Path("fedscale-node")
NOTHING = "nothing has left this site yet"
HomeFolder: TypeAlias = Annotated[Path, typer.Option("--home", envvar="FEDSCALE_NODE_HOME", help="The node's folder.")]

Lines: TypeAlias = Annotated[int, typer.Option("--lines", "-n", min=1, help="How many to show, the newest; --json has them all.")]
LINES = 40


def emit_newest(data: console.JSON, columns: Sequence[str], rows: Sequence[Sequence[object]], lines: int, *, as_json: bool) -> None:
    """Print what has left a site: all of ``data``, or the last so many rows of a table with a note that there are more."""
    console.emit(data, console.table(columns, rows[-lines:]) if rows else NOTHING, as_json=as_json)
    if len(rows) > lines and not as_json:
        console.note(f"these are the newest {lines} of {len(rows)}; all of them: --lines {len(rows)}")


def opened(folder: Path) -> NodeHome:
    """The home of a node that has joined.

    Raises:
        ConfigError: it has not.
    """
    home = NodeHome(folder.absolute())
    home.settings()
    return home
