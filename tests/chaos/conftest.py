"""What the chaos tests share: the database of the server's tests, and a log that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.server.conftest import server, sqlite_at_head


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Drawing the traceback of every refusal takes longer than the refusal."""
    with structlog.testing.capture_logs():
        yield


__all__ = ["server", "sqlite_at_head"]
