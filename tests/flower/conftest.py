"""What the tests of Flower apps share: apps in directories of their own, and flwr imported without its warnings."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedscale.flower  # noqa: F401 - Flower's telemetry is off before flwr is loaded
from tests.flower import samples

NEEDING = [
    f"test_{name}.py"
    for name in ("simulation", "grid", "bridge", "beside_flwr", "strategies", "templates", "gateway", "quick", "mail", "lead", "rounds", "manners")
]
# Without Flower only what reads an app's directory can be tested.
collect_ignore_glob = [] if importlib.util.find_spec("flwr") else NEEDING


@pytest.fixture(scope="session", autouse=True)
def flower() -> Iterator[None]:
    """Importing flwr emits warnings of its dependencies, which are nobody's business here; its log is not shown either."""
    if importlib.util.find_spec("flwr"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.server", "flwr.client"):
                importlib.import_module(name)
    before = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("flwr").setLevel(before)


@pytest.fixture
def app(tmp_path: Path) -> Callable[..., Path]:
    """Writes an app into a directory of its own."""
    return lambda *parts, **named: samples.write(tmp_path / f"app-{len(list(tmp_path.iterdir()))}", *parts, **named)


@pytest.fixture
def messages() -> Any:
    """``flwr.app``."""
    return pytest.importorskip("flwr.app")
