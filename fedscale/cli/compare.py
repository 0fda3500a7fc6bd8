"""``fedscale run compare``: what several runs left in their folders, side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from fedscale import console
from fedscale.cli.options import Json
from fedscale.errors import ConfigError, Conflict, NotFound
from fedscale.record import RunRecord, summary
from fedscale.report.versus import comparison_rows, write_comparison

FILE = "metrics.json"
# What a run has left that is over, and what a simulation has that is not, or was interrupted.
LEFT = (FILE, "checkpoint.safetensors")


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="What runs, simulations and reports left.")],
    *,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    json: Json = False,
) -> None:
    """Compare runs by the folders they left: one table, and one page with their curves."""
    runs = dict(zip(titles(folders), map(read, folders), strict=True))
    write_comparison(runs, out)
    data = {"runs": {name: summary(run) for name, run in runs.items()}, "page": str(out)}
    console.emit(data, Group(console.table(*comparison_rows(runs)), str(out)), as_json=json)


def read(folder: Path) -> RunRecord:
    """The record in a run's folder.

    Raises:
        NotFound: there is none.
        Conflict: the run is not over.
        ConfigError: it is damaged.
    """
    path = folder / FILE
    if not path.exists() and (folder / LEFT[1]).exists():
        hint = f"if it was interrupted, go on with it: fedscale simulate JOB --out {shlex.quote(str(folder))} --resume"
        raise Conflict("the simulation in the folder is not over", where=str(folder), hint=hint)
    try:
        return RunRecord.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        hint = "give folders that a run or simulation has left, such as runs/NAME"
        raise NotFound(
            "there is no run in the folder", where=str(path), why=getattr(error, "strerror", "") or "it is not UTF-8 text", hint=hint
        ) from None
    except ConfigError as error:
        raise ConfigError(error.what, where=str(path), why=error.why, hint=error.hint) from None


def titles(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, or the whole path where two folders have the same name.

    Raises:
        ConfigError: a folder is given twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a run is given twice", hint="give each folder once")
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
