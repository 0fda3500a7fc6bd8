from __future__ import annotations

import errno

import pytest

from fedscale.causes import cause_of
from fedscale.errors import AppError, Cause, ConfigError, DataError, FedscaleError, NotFound, PolicyRefusal, RunFailed, Unreachable, UpdateRejected


class OutOfMemoryError(RuntimeError):
    """As torch names the one of CUDA."""


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DataError("x"), Cause.DATA),
        (ConfigError("x"), Cause.DATA),
        (PolicyRefusal("x"), Cause.POLICY),
        (Unreachable("x"), Cause.NETWORK),
        (NotFound("x"), Cause.NETWORK),
        (UpdateRejected("a shape does not fit"), Cause.REJECTED),
        (UpdateRejected("a value is beyond the agreed range"), Cause.DIVERGED),
        (AppError("the loss is not finite"), Cause.DIVERGED),
        (AppError("the learner returned nothing"), Cause.CODE),
        (DataError("the features are not finite"), Cause.DATA),
        (RunFailed("x"), Cause.CODE),
        (caused(ConfigError("cannot be written"), OSError(errno.ENOSPC, "full")), Cause.DISK),
    ],
)
def test_errors_of_ours(error: FedscaleError, cause: Cause) -> None:
    assert cause_of(error, ours=True) is cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), Cause.MEMORY),
        (OutOfMemoryError(), Cause.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Cause.MEMORY),
        (OSError(errno.ENOSPC, "full"), Cause.DISK),
        (OSError(errno.EDQUOT, "quota"), Cause.DISK),
        (OSError(errno.ENOENT, "gone"), None),
        (ValueError("not finite"), None),
        (UpdateRejected("a value is beyond the agreed range"), None),
        (DataError("raised by an app"), Cause.DATA),
    ],
)
def test_errors_of_foreign_code(error: Exception, cause: Cause | None) -> None:
    assert cause_of(error, ours=False) is cause
