"""Why a virtual client did not answer, in the words a coordinator would hear."""

from __future__ import annotations

import errno
import sysconfig
import traceback
from pathlib import Path

from fedscale import errors
from fedscale.errors import Cause, DataError, Failure, FedscaleError, PolicyRefusal, UpdateRejected

LIBRARIES = tuple(Path(folder) for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), Path(errors.__file__).parent, Path(__file__).parent))
HINTS = {
    Cause.MEMORY: "lower train.batch_size",
    Cause.DISK: "free some disk space",
}
# One class of error says that an answer cannot be laid out; these words tell a diverged model from a wrong result.
DIVERGED = ("not finite", "beyond the agreed range")


def failure_of(error: Exception) -> Failure:
    """The typed failure behind an exception of a client's work.

    Unlike a real node's, the message of foreign code is kept: in a simulation the data are the reader's own.
    """
    cause = _cause(error)
    if isinstance(error, FedscaleError):
        what = f"{error.what} ({error.why})" if error.why else error.what
        return Failure(cause, what, where=error.where, hint=error.hint)
    return Failure(cause, f"{type(error).__name__}: {error}", where=_place(error), hint=HINTS.get(cause, ""))


def _cause(error: Exception) -> Cause:
    """The typed reason behind an exception."""
    # torch raises a RuntimeError of its own where memory is short: by this name on CUDA, with these words elsewhere.
    short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    cases = {
        Cause.DATA: isinstance(error, DataError),
        Cause.POLICY: isinstance(error, PolicyRefusal),
        Cause.DIVERGED: isinstance(error, UpdateRejected) and any(words in str(error) for words in DIVERGED),
        Cause.MEMORY: short,
        Cause.DISK: isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT),
    }
    return next((cause for cause, holds in cases.items() if holds), Cause.CODE)


def _place(error: Exception) -> str:
    """``file:line`` of the innermost frame that is the user's own, or else of the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(library) for library in LIBRARIES)]
    return next((f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(own or frames)), "")
