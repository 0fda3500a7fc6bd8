"""Where a simulation leaves its results, so that none takes the place of an earlier one."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedscale.errors import ConfigError, Conflict

RUNS = Path("runs")
# What a run that is interrupted leaves, and what one that has ended leaves besides.
BEGUN, ENDED = "checkpoint.safetensors", "metrics.json"


@contextmanager
def claimed(name: str, out: Path | None = None) -> Iterator[Path]:
    """A folder for a new run: the given one, else ``runs/NAME``, or ``runs/NAME-2`` and so on where there is a run already.

    Raises:
        Conflict: the given folder holds a run, or is none, or another simulation is at work in it.
        ConfigError: the folder cannot be made.
    """
    before = out is not None and out.exists()
    folder, descriptor = _given(out) if out is not None else next(filter(None, map(_free, _numbered(name))))
    try:
        yield folder
    finally:
        # A run that could not even begin leaves nothing.
        with suppress(OSError):
            if not before:
                folder.rmdir()
        os.close(descriptor)


@contextmanager
def at_work(folder: Path) -> Iterator[Path]:
    """Go on in a folder, where there is one, and keep others out meanwhile; a crash lets them in again.

    Raises:
        Conflict: another simulation is at work in it.
        ConfigError: the folder cannot be read.
    """
    if not folder.is_dir():
        yield folder
        return
    descriptor = _kept(folder)
    try:
        yield folder
    finally:
        os.close(descriptor)


def latest(name: str) -> Path:
    """The folder of the run of that name that was at work last; ``runs/NAME`` where there is none."""
    runs = [folder for folder in RUNS.glob(f"{name}*") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", folder.name)]
    at_work = {folder: (folder / BEGUN).stat().st_mtime_ns for folder in runs if (folder / BEGUN).exists()}
    return max(at_work, key=lambda folder: at_work[folder], default=RUNS / name)


def begun(folder: Path) -> bool:
    """Whether a folder has what a run can go on from."""
    return (folder / BEGUN).exists()


def holds_run(folder: Path) -> bool:
    """Whether a run has left something in a folder."""
    return begun(folder) or (folder / ENDED).exists()


def interrupted(folder: Path) -> bool:
    """Whether the run in a folder was interrupted, and nobody goes on with it."""
    if not begun(folder) or (folder / ENDED).exists():
        return False
    try:
        with at_work(folder):
            return True
    except (Conflict, ConfigError):
        return False


def _given(out: Path) -> tuple[Path, int]:
    """A folder that somebody chose, and the lock on it."""
    if out.exists() and not out.is_dir():
        raise Conflict("the folder is a file", where=str(out), hint="choose another folder with --out")
    _made(out)
    descriptor = _kept(out)
    if holds_run(out):
        os.close(descriptor)
        hint = "go on with it by --resume, or choose another folder with --out"
        raise Conflict("the folder holds a run already", where=str(out), hint=hint)
    return out, descriptor


def _numbered(name: str) -> Iterator[Path]:
    yield RUNS / name
    yield from (RUNS / f"{name}-{number}" for number in itertools.count(2))


def _free(folder: Path) -> tuple[Path, int] | None:
    """A folder in which there is nothing and nobody, and the lock on it; it is made where it is not there."""
    made = _made(folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    alone = _alone(descriptor)
    # An empty folder that was there is left from a run that was killed; where locks are unknown it may be one that just begins.
    if alone is not False and (made or alone) and _bare(folder, descriptor):
        return folder, descriptor
    os.close(descriptor)
    return None


def _kept(folder: Path) -> int:
    """The lock on a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError("the folder cannot be read", where=str(folder), why=error.strerror or type(error).__name__) from None
    if _alone(descriptor) is False:
        os.close(descriptor)
        hint = "wait until it has ended, or choose another folder with --out"
        raise Conflict("another simulation is at work in the folder", where=str(folder), hint=hint)
    return descriptor


def _alone(descriptor: int) -> bool | None:
    """Whether this process has an open folder for itself from now on; nothing where the file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _bare(folder: Path, descriptor: int) -> bool:
    """Whether an open folder is still there, and empty."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor)) and not any(folder.iterdir())
    except OSError:
        return False


def _made(folder: Path) -> bool:
    """Whether a folder was not there and is now; of two processes that ask, one hears so."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        why, hint = error.strerror or type(error).__name__, "choose another folder with --out"
        raise ConfigError("the folder cannot be made", where=str(folder), why=why, hint=hint) from None
    return True
