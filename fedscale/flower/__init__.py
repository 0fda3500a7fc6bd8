"""Flower apps as they are: a foreign runtime under ``ClientApp``, ``ServerApp`` and whole app directories.

Only this package imports flwr, and only in modules that are themselves imported when a Flower app is run; reading an app's
directory needs none of it. Flower's telemetry is off before anything of Flower is loaded.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedscale.flower.bridge import dataset, learner

__all__ = ["dataset", "learner"]

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"


def __getattr__(name: str) -> Any:
    """What ``__all__`` names, from its module, which needs flwr."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("fedscale.flower.bridge"), name)
