"""Why a virtual client did not answer, in the words a coordinator would hear."""

from __future__ import annotations

import errno
import sysconfig
import traceback
from pathlib import Path

from fedscale import errors
from fedscale.errors import Cause, ConfigError, DataError, Failure, FedscaleError, PolicyRefusal, UpdateRejected

OURS = (Path(errors.__file__).parent, Path(__file__).parent)
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
CAUSES = ((DataError, Cause.DATA), (ConfigError, Cause.DATA), (PolicyRefusal, Cause.POLICY), (UpdateRejected, Cause.REJECTED))
HINTS = {Cause.MEMORY: "lower train.batch_size", Cause.DISK: "free some disk space"}
# Errors of ours that are about values use these words; the same rule sorts the failures of real nodes.
DIVERGED = ("not finite", "beyond")


def failure_of(error: Exception) -> Failure:
    """The typed failure behind an exception of a client's work.

    Unlike a real node's, the message of foreign code is kept: the data of a simulation are the reader's own.
    """
    cause = _cause(error)
    if isinstance(error, FedscaleError):
        what = f"{error.what} ({error.why})" if error.why else error.what
        return Failure(cause, what, where=error.where or _place(error), hint=error.hint)
    return Failure(cause, f"{type(error).__name__}: {error}", where=_place(error), hint=HINTS.get(cause, ""))


def _cause(error: Exception) -> Cause:
    """The typed reason behind an exception."""
    if isinstance(error, FedscaleError):
        if any(words in error.what for words in DIVERGED):
            return Cause.DIVERGED
        return next((cause for kind, cause in CAUSES if isinstance(error, kind)), Cause.CODE)
    # torch raises a RuntimeError of its own where memory is short: by this name on CUDA, with these words elsewhere.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return Cause.MEMORY
    return Cause.DISK if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) else Cause.CODE


def _place(error: Exception) -> str:
    """``file:line`` of the innermost frame of the user's own code; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(folder) for folder in (*OURS, *LIBRARIES))]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
