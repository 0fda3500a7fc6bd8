"""``fedscale init``: a job that runs, to be changed into one's own."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from importlib.abc import Traversable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedscale import console
from fedscale.cli.options import DryRun, Json
from fedscale.errors import ConfigError, Conflict

PLACEHOLDER = "my-job"


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it; made when it is missing.")] = Path(),
    *,
    template: Annotated[
        Literal["tabular", "image", "text", "survival", "sklearn", "hospitals", "flower"], typer.Option(help="What to begin with.")
    ] = "tabular",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a runnable job into a folder."""
    texts = {folder / name: text for name, text in contents(template, job_name(folder)).items()}
    if there := [path for path in texts if path.exists()]:
        raise Conflict("there is a job here already", where=str(there[0]), hint="choose another folder: fedscale init DIR")
    if not dry_run:
        _write(texts)
    # A Flower app is its directory.
    job = next((path for path in texts if path.name == "job.toml"), folder)
    data = {"template": template, "files": [str(path) for path in texts], "dry_run": dry_run}
    console.emit(data, "\n".join(f"{'would write' if dry_run else 'wrote'} {path}" for path in texts), as_json=json)
    console.note(f"try it: fedscale simulate {shlex.quote(str(job))}")


def contents(template: str, name: str) -> dict[str, str]:
    """The files of a template by name, made out for a job of this name."""
    found = dict(_below(files("fedscale").joinpath("templates", template)))
    return {path.removesuffix(".txt"): found[path].replace(PLACEHOLDER, name) for path in sorted(found)}


def job_name(folder: Path) -> str:
    """A job's name after its folder."""
    plain = unicodedata.normalize("NFKD", folder.resolve().name.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or PLACEHOLDER


def _below(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The files in a folder and in those below it: path and text of each."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.read_text("utf-8")


def _write(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError("the job cannot be written", where=str(path), why=error.strerror or "") from None
