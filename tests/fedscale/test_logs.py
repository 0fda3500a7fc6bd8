"""A log that cannot be written disturbs nobody."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from fedscale.cli.logs import configure


class Full(io.StringIO):
    """A stream on a disk that may be full."""

    full = True

    def write(self, text: str, /) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)

    def flush(self) -> None:
        if self.full:
            raise BrokenPipeError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["text", "json"])
def test_who_logs_is_not_broken_off_by_a_full_disk(form: Literal["text", "json"], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Full()
    monkeypatch.setattr(sys, "stderr", stream)
    configure(form)
    log = structlog.get_logger()
    try:
        raise OSError(errno.ENOSPC, "the disk")
    except OSError:
        log.exception("a run waits")
    assert stream.getvalue() == ""
    stream.full = False
    log.info("and goes on")
    assert "and goes on" in stream.getvalue()
    assert "a run waits" not in stream.getvalue()


def test_who_logs_is_not_broken_off_by_a_stream_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("json")
    structlog.get_logger().info("heard")
    heard = stream.getvalue()
    stream.close()
    structlog.get_logger().info("not heard")
    assert "heard" in heard
