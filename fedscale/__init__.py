"""fedscale: federated learning where one plan simulates and deploys.

``import fedscale`` loads nothing but this file; every name below is imported from its module when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedscale import data, flower
    from fedscale.data import Dataset, Population
    from fedscale.errors import FedscaleError
    from fedscale.learner import App, Learner, LocalOptimizer, Phase, Result, Training, Work
    from fedscale.metrics import Metric
    from fedscale.plan import Aggregate, Clients, Evaluate, Plan
    from fedscale.privacy.dp import DP
    from fedscale.secagg.table import Secagg
    from fedscale.strategy import Strategy, fed_adagrad, fed_adam, fed_avg, fed_avgm, fed_buff, fed_prox, fed_yogi
    from fedscale.vector import Schema
    from fedscale_simulations.simulator import simulate

__version__ = "0.1.0"

__all__ = [
    "DP",
    "Aggregate",
    "App",
    "Clients",
    "Dataset",
    "Evaluate",
    "FedscaleError",
    "Learner",
    "LocalOptimizer",
    "Metric",
    "Phase",
    "Plan",
    "Population",
    "Result",
    "Schema",
    "Secagg",
    "Strategy",
    "Training",
    "Work",
    "data",
    "fed_adagrad",
    "fed_adam",
    "fed_avg",
    "fed_avgm",
    "fed_buff",
    "fed_prox",
    "fed_yogi",
    "flower",
    "simulate",
]

_HOMES = {
    "fedscale.data.dataset": ("Dataset", "Population"),
    "fedscale.errors": ("FedscaleError",),
    "fedscale.learner": ("App", "Learner", "LocalOptimizer", "Phase", "Result", "Training", "Work"),
    "fedscale.metrics": ("Metric",),
    "fedscale.plan": ("Aggregate", "Clients", "Evaluate", "Plan"),
    "fedscale.privacy.dp": ("DP",),
    "fedscale.secagg.table": ("Secagg",),
    "fedscale.strategy": ("Strategy", "fed_adagrad", "fed_adam", "fed_avg", "fed_avgm", "fed_buff", "fed_prox", "fed_yogi"),
    "fedscale.vector": ("Schema",),
    "fedscale_simulations.simulator": ("simulate",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def _load(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name in ("data", "flower"):
        return import_module(f"fedscale.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fedscale' has no attribute '{name}'", name=name, obj=sys.modules[__name__])
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


# Type checkers know every name from the imports above, and shall complain of all others.
if not TYPE_CHECKING:
    __getattr__ = _load


def __dir__() -> list[str]:
    """The public names, whether loaded or not."""
    return sorted({*globals(), *__all__})
