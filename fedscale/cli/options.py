"""Options that many commands share, spelled and explained once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Settings: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="A setting that wins over the job file; may be repeated.")
]


def at(home: Path) -> str:
    """``--home FOLDER`` as a shell takes it, for commands that are proposed."""
    return f"--home {shlex.quote(str(home))}"
