"""Flower apps as they are: a foreign runtime under ``ClientApp``, ``ServerApp`` and whole app directories.

Only this package imports flwr, and only in modules that are themselves imported when a Flower app is run; reading an app's
directory needs none of it. Flower's telemetry is off before anything of Flower is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedscale.errors import ConfigError

if TYPE_CHECKING:
    from fedscale.flower.bridge import dataset, learner
    from fedscale.flower.strategies import strategy
    from fedscale.optimizers import Step

__all__ = ["dataset", "learner", "strategy"]

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"


def __getattr__(name: str) -> Any:
    """What ``__all__`` names, from its module, which needs flwr.

    Raises:
        ConfigError: flwr is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require()
    return getattr(importlib.import_module(f"fedscale.flower.{'strategies' if name == 'strategy' else 'bridge'}"), name)


def require() -> None:
    """Refuse to go on without flwr.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("flwr") is None:
        raise ConfigError("flwr is not installed", why="Flower apps and strategies need it", hint="pip install 'fedscale-fl[torch,flower]'")


def step(of: str, api: str, arguments: Mapping[str, Any]) -> Step:
    """The server's step of one of Flower's strategies by its name; flwr is loaded here.

    Raises:
        ConfigError: flwr is not installed.
        PlanError: there is no such strategy.
    """
    require()
    made: Step = importlib.import_module("fedscale.flower.strategies").named(of, api, arguments)
    return made
