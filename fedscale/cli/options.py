"""Options that many commands share, spelled and explained once."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Settings: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="A setting that wins over the job file; may be repeated.")
]
