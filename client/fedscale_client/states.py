"""What a Flower app, or any app that answers messages, wants to remember from one message of a run to the next.

It is kept by the number of the message that it came of. A message that is answered again, because the first answer was lost
with its process, begins with what was there before it: so nothing counts twice.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fedscale_client.home import make_private, write_private

MOST_RUNS = 64


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
        """Keep what comes of a message, durably, and what there was before it; of runs, those that were at work last."""
        if not self._folder.is_dir():
            make_private(self._folder)
            _trim(self._folder.parent)
        write_private(self._folder / str(number), state)
        for path in [path for path in self._kept() if int(path.name) < number][:-1]:
            path.unlink()

    def _kept(self) -> list[Path]:
        """The files, in the order of the messages."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted((path for path in found if path.name.isdecimal()), key=lambda path: int(path.name))


def _trim(folder: Path) -> None:
    """Forget the runs that were at work least recently."""
    for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
