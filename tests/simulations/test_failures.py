from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch

from fedscale.errors import (
    AppError,
    Cause,
    ConfigError,
    DataError,
    FedscaleError,
    PlanError,
    PolicyRefusal,
    UpdateRejected,
)
from fedscale.ring import FixedPoint
from fedscale_simulations.failures import failure_of


class OutOfMemoryError(RuntimeError):
    """What torch raises on CUDA, by name."""


def raised(error: Exception) -> Exception:
    """The error with a traceback that leads here."""
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DataError("x"), Cause.DATA),
        (ConfigError("x"), Cause.DATA),
        (PolicyRefusal("x"), Cause.POLICY),
        (UpdateRejected("tensor 'w' is missing from the answer"), Cause.REJECTED),
        (UpdateRejected("the loss is not finite"), Cause.DIVERGED),
        (UpdateRejected("a value is beyond the agreed range"), Cause.DIVERGED),
        (AppError("metric 'auc' met a score that is not finite"), Cause.DIVERGED),
        (AppError("x"), Cause.CODE),
        (PlanError("x"), Cause.CODE),
        (FedscaleError("x"), Cause.CODE),
        (ValueError("not finite"), Cause.CODE),
        (MemoryError(), Cause.MEMORY),
        (OutOfMemoryError("CUDA out of memory"), Cause.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Cause.MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), Cause.DISK),
        (OSError(errno.ENOENT, "No such file"), Cause.CODE),
    ],
)
def test_each_error_has_its_cause(error: Exception, cause: Cause) -> None:
    assert failure_of(raised(error)).cause is cause


def test_the_words_of_our_errors_are_kept() -> None:
    failure = failure_of(AppError("no loss", where="app.py:3", why="it returned None", hint="return one"))
    assert (failure.what, failure.where, failure.hint) == ("no loss (it returned None)", "app.py:3", "return one")


def test_foreign_errors_say_type_message_and_place() -> None:
    failure = failure_of(raised(ValueError("shapes differ")))
    assert failure.what == "ValueError: shapes differ"
    assert failure.where.startswith("test_failures.py:")


def test_the_place_is_in_the_users_code_and_not_in_a_library() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    line = failure_of(caught.value).where
    assert line.startswith("test_failures.py:")
    with pytest.raises(RuntimeError) as torchs:
        torch.zeros(2) @ torch.zeros(3)
    assert failure_of(torchs.value).where.startswith("test_failures.py:")


def test_an_error_without_a_place_has_none() -> None:
    assert failure_of(ValueError("x")).where == ""


def test_the_ring_speaks_of_divergence_in_the_words_that_are_looked_for() -> None:
    encode = FixedPoint.for_sum(4, 1.0).encode
    for value in (np.nan, 7.0):
        with pytest.raises(UpdateRejected) as caught:
            encode(np.array([0.0, value], np.float32), np.empty(2, np.uint32))
        failure = failure_of(caught.value)
        assert (failure.cause, failure.where) == (Cause.DIVERGED, "coordinate 1")
