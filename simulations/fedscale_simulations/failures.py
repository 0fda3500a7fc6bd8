"""Why a virtual client did not answer, in the words a coordinator would hear."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from fedscale import errors
from fedscale.causes import cause_of
from fedscale.errors import Cause, Failure, FedscaleError

OURS = (Path(errors.__file__).parent, Path(__file__).parent)
IMPORTER = (Path("<frozen importlib._bootstrap>"), Path("<frozen importlib._bootstrap_external>"))
LIBRARIES = (*(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")), *IMPORTER)
HINTS = {Cause.MEMORY: "lower train.batch_size", Cause.DISK: "free some disk space"}


def failure_of(error: Exception) -> Failure:
    """The typed failure behind an exception of a client's work.

    Unlike a real node's, the message of foreign code is kept: the data of a simulation are the reader's own.
    """
    cause = cause_of(error, ours=isinstance(error, FedscaleError)) or Cause.CODE
    if isinstance(error, FedscaleError):
        what = f"{error.what} ({error.why})" if error.why else error.what
        behind = error.__cause__
        return Failure(cause, what, where=error.where or _place(error) or (_place(behind) if isinstance(behind, Exception) else ""), hint=error.hint)
    return Failure(cause, f"{type(error).__name__}: {error}", where=_place(error), hint=HINTS.get(cause, ""))


def _place(error: Exception) -> str:
    """``file:line`` of the innermost frame of the user's own code; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(folder) for folder in (*OURS, *LIBRARIES))]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
