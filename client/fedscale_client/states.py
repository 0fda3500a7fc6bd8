"""What a Flower app, or any app that answers messages, wants to remember from one message of a run to the next.

It is kept by the number of the message that it came of. A message that is answered again, because the first answer was lost
with its process, begins with what was there before it: so nothing counts twice.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fedscale import files
from fedscale.errors import AppError
from fedscale.wire.codec import digest_of
from fedscale.wire.limits import LETTER

FOLDER = "states"
MOST_RUNS, LONGEST = 64, 90 * 86_400.0  # seconds


class States:
    """What apps remember, for each run of a node in a folder of its own.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, number: int) -> bytes:
        """What was kept last before a message; empty where nothing was."""
        earlier = [path for path in self._kept() if int(path.name) < number]
        return earlier[-1].read_bytes() if earlier else b""

    def keep(self, number: int, state: bytes) -> None:
        """Keep what comes of a message, durably, and what there was before it; of runs, those that were at work last.

        Raises:
            AppError: it is larger than a reply may be.
        """
        if len(state) > LETTER:
            raise AppError(f"the app wants to remember {len(state)} bytes", why=f"at most {LETTER} are kept from one message to the next")
        if not self._folder.is_dir():
            files.private_folder(self._folder)
            trim(self._folder.parent)
        files.write(self._folder / str(number), state)
        for path in [path for path in self._kept() if int(path.name) < number][:-1]:
            path.unlink()

    def _kept(self) -> list[Path]:
        """The files, in the order of the messages."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted((path for path in found if path.name.isdecimal()), key=lambda path: int(path.name))


def folder_of(cache: Path, run: str) -> Path:
    """Where a run's states lie in a node's cache; nothing that a coordinator says becomes part of a path."""
    return cache / FOLDER / digest_of(run.encode())


def forget(cache: Path, run: str) -> None:
    """Drop what apps remember of a run that is over."""
    shutil.rmtree(folder_of(cache, run), ignore_errors=True)


def trim(folder: Path) -> None:
    """Forget the runs that were at work least recently, and those of whose end this node has never heard."""
    for place, (at, old) in enumerate(sorted(_worked(folder), reverse=True)):
        if place >= MOST_RUNS or at < time.time() - LONGEST:
            shutil.rmtree(old, ignore_errors=True)


def _worked(folder: Path) -> Iterator[tuple[float, Path]]:
    """When runs were at work last, and where they lie; another process of the node may drop one meanwhile."""
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            yield path.stat().st_mtime, path
