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


def test_what_another_machine_says_does_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class names, versions and reasons come from others; a word without spaces is written as it is."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("text")
    structlog.get_logger().warning("failed", what="\x1b[2J\x1b]0;owned\x07", why="a\nb", site="n\u202eord", tries=3)
    (line,) = stream.getvalue().splitlines()
    assert not any(sign in line for sign in "\x1b\x07\u202e")
    assert "what=\ufffd[2J\ufffd]0;owned\ufffd" in line
    assert "tries=3" in line


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
