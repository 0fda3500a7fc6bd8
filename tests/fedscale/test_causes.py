from __future__ import annotations

import errno

import pytest

from fedscale.causes import FEW, cause_of, listed
from fedscale.errors import (
    AppError,
    Cause,
    ConfigError,
    DataError,
    Failure,
    FedscaleError,
    NotFound,
    PolicyRefusal,
    RunFailed,
    Unreachable,
    UpdateRejected,
)


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
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), Cause.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Cause.MEMORY),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (ValueError("out of memory"), None),
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


BROKEN, LATE = Failure(Cause.CODE, "ValueError", where="app.py:3"), Failure(Cause.TIMEOUT, "no answer")


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        ({}, ""),
        ({"b": BROKEN}, "b: code: app.py:3: ValueError"),
        ({"c": BROKEN, "b": LATE, "a": BROKEN}, "a, c: code: app.py:3: ValueError; b: timeout: no answer"),
        ({f"n{at:03}": LATE for at in range(500)}, "n000, n001, n002, n003, n004, n005, n006, n007 and 492 more: timeout: no answer"),
    ],
)
def test_failures_that_are_alike_are_told_once(failures: dict[str, Failure], told: str) -> None:
    assert listed(failures) == told


def test_of_many_kinds_of_failures_the_first_are_told() -> None:
    told = listed({f"n{at:02}": Failure(Cause.CODE, f"fault {at}") for at in range(FEW + 5)})
    assert (told.count("fault"), told.endswith("fault 7; and 5 more")) == (FEW, True)
