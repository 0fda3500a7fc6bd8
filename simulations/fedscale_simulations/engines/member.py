"""What runs in a worker of a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedscale.events import Answered, Failed, Initialized
from fedscale.learner import App, Learner
from fedscale.plan import Plan
from fedscale.ring import WORD, Words
from fedscale.strategy import Strategy
from fedscale.task import Tasks
from fedscale.torch_learner import as_learner, one_thread
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Desk, keep


class Member:
    """What runs in a worker of the cluster: the same desk as anywhere.

    Args:
        plan: the configuration of the run.
        strategy: the strategy of the run.
        app: an ``App`` or a ``Learner``.
        data: each client's dataset by name.
    """

    def __init__(self, plan: Plan, strategy: Strategy, app: App | Learner, data: Mapping[str, Any]) -> None:
        self._desk = Desk(plan, strategy, as_learner(app, keep(data)), data)

    def add(self, tasks: Tasks, model: Vector) -> tuple[list[Failed], Words]:
        """The sum of the answers of these clients, and the failures of those whose answers are not in it."""
        total = np.zeros(tasks.layout.length, WORD)
        with one_thread():
            failed = [self._desk.add(task, model, total) for task in tasks]
        return [failure for failure in failed if failure is not None], total

    def answer(self, tasks: Tasks, model: Vector) -> tuple[list[Answered | Initialized | Failed], None]:
        """The answers of these clients one by one."""
        with one_thread():
            return [self._desk.answer(task, model) for task in tasks], None


def merged(*parts: Words) -> Words:
    """The sum of sums."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total
