"""The typed cause behind an exception of a client's work: one set of rules for real nodes and simulated clients."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from fedscale.errors import (
    AccessDenied,
    AppError,
    Cause,
    ConfigError,
    DataError,
    Failure,
    FedscaleError,
    NotFound,
    PolicyRefusal,
    ProtocolError,
    Unreachable,
    UpdateRejected,
)

T = TypeVar("T")

GONE = Failure(Cause.LOST, "the connection to the node broke", hint="see the node's own log; clients.rejoin is how long it has to come back")
CAUSES: tuple[tuple[type[FedscaleError], Cause], ...] = (
    (DataError, Cause.DATA),
    (ConfigError, Cause.DATA),
    (PolicyRefusal, Cause.POLICY),
    (Unreachable, Cause.NETWORK),
    (ProtocolError, Cause.NETWORK),
    (NotFound, Cause.NETWORK),
    (AccessDenied, Cause.NETWORK),
    (UpdateRejected, Cause.REJECTED),
)
# Errors of ours that are about values which training has blown up use these words.
DIVERGED = re.compile("not finite|beyond")
# How torch says that memory has run out where it has no error of that name: of the machine, of a GPU, of a library that computes there.
NO_MEMORY = re.compile("can't allocate memory|out of memory|_STATUS_ALLOC_FAILED")
# So many names, and so many kinds of failures, are read.
FEW = 8


def attempted(work: Callable[[], T]) -> T | Exception:
    """What foreign code returns, or what it raises: the boundary at which a client's fault ends."""
    try:
        return work()
    except SystemExit as stop:
        return RuntimeError(f"the code called sys.exit({stop.code!r})").with_traceback(stop.__traceback__)
    except Exception as error:  # noqa: BLE001 - whatever a client's code does must not end the simulation
        return error


def cause_of(error: BaseException, *, ours: bool) -> Cause | None:
    """The cause of an exception; ``None`` for one of foreign code that says nothing.

    Args:
        error: the exception.
        ours: whether it is a ``FedscaleError`` whose type and words count; those that an app raises may not.
    """
    if is_memory(error):
        return Cause.MEMORY
    if is_disk(error):
        return Cause.DISK
    if ours and isinstance(error, UpdateRejected | AppError) and DIVERGED.search(error.what):
        return Cause.DIVERGED
    if ours or isinstance(error, DataError):
        return next((cause for kind, cause in CAUSES if isinstance(error, kind)), Cause.CODE)
    return None


def listed(failures: Mapping[str, Failure]) -> str:
    """Failures by node in one sentence: those that are alike together, and of a crowd not every name."""
    alike: dict[str, list[str]] = {}
    for node, failure in sorted(failures.items()):
        alike.setdefault(str(failure), []).append(node)
    shown = [f"{_some(nodes)}: {told}" for told, nodes in list(alike.items())[:FEW]]
    rest = sum(len(nodes) for nodes in list(alike.values())[FEW:])
    return "; ".join([*shown, *([f"and {rest} more"] if rest else [])])


def _some(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out: of the machine, or of an accelerator; torch says so in its own ways."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return isinstance(error, MemoryError) or named or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None)


def is_disk(error: BaseException) -> bool:
    """Whether the disk was full or over quota, as far as the exception or the one it was made of says."""
    return any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in (error, error.__cause__))
