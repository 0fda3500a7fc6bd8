"""The process of a command, which is short: it does without what Python does for long ones."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress

RARELY = 100_000


def whole(command: Callable[[], int]) -> int:
    """Run a command as all that its process does; returns its exit code.

    Garbage is looked for rarely, and in the end, when every exit handler has run, the process leaves without taking its
    memory apart object by object. Numpy's linear algebra gets one thread unless ``OMP_NUM_THREADS`` says otherwise: as in
    a worker, so that the bits do not depend on the machine, and because starting more takes a tenth of a short command.
    Pydantic looks for no plugins unless ``PYDANTIC_DISABLE_PLUGINS`` says otherwise: nothing else that happens to be installed
    is to see what is validated here, and reading all packages' metadata for them takes a twentieth of a short command.
    """
    _take_streams()
    gc.set_threshold(RARELY)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    ended: list[int] = []
    # Handlers run in reverse order, so this one comes last; without an exit code Python ends the process as always.
    atexit.register(_leave, ended)
    ended.append(command())
    return ended[0]


def _take_streams() -> None:
    """Take the place of standard streams that were closed before the start: else the next file opened gets their number, and all that is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _leave(ended: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if ended:
        os._exit(ended[0])
