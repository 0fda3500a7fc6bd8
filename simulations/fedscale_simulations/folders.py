"""Where a simulation leaves its results, so that none takes the place of an earlier one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedscale.errors import Conflict

RUNS = Path("runs")
# What a run that is interrupted leaves, and what one that has ended leaves besides.
BEGUN, ENDED = "checkpoint.safetensors", "metrics.json"


@contextmanager
def claimed(name: str, out: Path | None = None) -> Iterator[Path]:
    """A folder for a new run: the given one, else ``runs/NAME``, or ``runs/NAME-2`` and so on where there is one already.

    Raises:
        Conflict: the given folder holds a run, or is none.
    """
    if out is not None:
        if out.exists() and not out.is_dir():
            raise Conflict("the folder is a file", where=str(out), hint="choose another folder with --out")
        if holds_run(out):
            hint = "go on with it by --resume, or choose another folder with --out"
            raise Conflict("the folder holds a run already", where=str(out), hint=hint)
        yield out
        return
    folder = next(folder for folder in _numbered(name) if _made(folder))
    try:
        yield folder
    finally:
        # A run that could not even begin leaves nothing.
        with suppress(OSError):
            folder.rmdir()


def latest(name: str) -> Path:
    """The folder of the run of that name that was at work last; ``runs/NAME`` where there is none."""
    runs = [folder for folder in RUNS.glob(f"{name}*") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", folder.name)]
    at_work = {folder: (folder / BEGUN).stat().st_mtime_ns for folder in runs if (folder / BEGUN).exists()}
    return max(at_work, key=lambda folder: at_work[folder], default=RUNS / name)


def holds_run(folder: Path) -> bool:
    """Whether a run has left something in a folder."""
    return (folder / BEGUN).exists() or (folder / ENDED).exists()


def interrupted(folder: Path) -> bool:
    """Whether the run in a folder was interrupted."""
    return (folder / BEGUN).exists() and not (folder / ENDED).exists()


def _numbered(name: str) -> Iterator[Path]:
    yield RUNS / name
    yield from (RUNS / f"{name}-{number}" for number in itertools.count(2))


def _made(folder: Path) -> bool:
    """Whether a folder was not there and is now; of two processes that ask, one hears so."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
