"""A failed test of this folder shows the logs of its processes, too."""

from __future__ import annotations

from tests.e2e.conftest import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]
