"""Simulate a plan: the run that a server would drive, with virtual clients in one process.

The run, the rounds, the tasks and the learner are those of a deployment; only the world around them differs. The same
plan, seed, clients and learner give the same model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from fedscale.clock import Clock, SystemClock
from fedscale.data import Dataset, Population
from fedscale.errors import ConfigError, DataError, PlanError
from fedscale.events import Assign, Commit
from fedscale.learner import App, Learner, Training
from fedscale.plan import Aggregate, Clients, Evaluate, Plan
from fedscale.record import RoundRecord
from fedscale.run import RUNNING, Run
from fedscale.strategy import Strategy, fed_avg
from fedscale.torch_learner import TorchLearner, as_learner
from fedscale_simulations import checkpoint, job
from fedscale_simulations.books import Books
from fedscale_simulations.engines.sequential import KEEP, Answer, Engine, Sequential
from fedscale_simulations.result import Progress, Simulation
from fedscale_simulations.world import World

Section: TypeAlias = BaseModel | Mapping[str, Any] | None
Watch: TypeAlias = Callable[[Progress], None]

PARTS_OF_A_DATASET = 2


def simulate(  # noqa: PLR0913 - one argument for each table of a plan
    app: App | Learner,
    data: Mapping[str, Any],
    *,
    strategy: Strategy | None = None,
    rounds: int = 10,
    seed: int = 0,
    clients: Clients | Mapping[str, Any] | None = None,
    train: Training | Mapping[str, Any] | None = None,
    aggregate: Aggregate | Mapping[str, Any] | None = None,
    evaluate: Evaluate | Mapping[str, Any] | None = None,
    name: str = "simulation",
    plan: Plan | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_progress: Watch = lambda _: None,
) -> Simulation:
    """Simulate a federation in this process.

    Args:
        app: an ``App``, which is trained with torch, or any ``Learner``.
        data: the virtual clients: a ``Population``, or a mapping from names to whatever the learner takes.
        strategy: how to learn; ``fed_avg()`` by default.
        rounds: how many.
        seed: of everything random.
        clients: who takes part, the plan's ``[clients]``: ``{"select": 50}``.
        train: local training, the plan's ``[train]``: ``{"epochs": 2, "optimizer": {"name": "adam", "lr": 0.001}}``.
        aggregate: the plan's ``[aggregate]``.
        evaluate: the plan's ``[evaluate]``; its metrics are the app's unless they are given.
        name: the job's name.
        plan: a whole plan instead of the arguments from ``rounds`` to ``name``; ``strategy`` only if the plan's is custom.
        folder: where checkpoints go after every phase, and in the end the summary, the report and the model.
        resume: go on from the checkpoint in ``folder``; everything else must be as it was.
        on_progress: called after every client and every closed round.

    Returns:
        The ended run. One that failed is returned as well, with the reason in its record.

    Raises:
        PlanError: an argument is out of its range, or they do not go together.
        AppError: ``app`` is neither an ``App`` nor a ``Learner``, or names a metric that does not exist.
        DataError: ``data`` is no mapping of clients.
        ConfigError: ``folder`` cannot be used.
        NotFound: there is no checkpoint to resume from.
    """
    tables: dict[str, Section] = {"clients": clients, "train": train, "aggregate": aggregate, "evaluate": evaluate}
    if plan is None:
        strategy = strategy or fed_avg()
        plan = _plan(app, strategy, {"name": name, "seed": seed}, rounds, tables)
    elif given := [table for table, value in tables.items() if value is not None]:
        raise PlanError(f"both a plan and '{given[0]}' are given", hint="put everything into the plan")
    return _simulate(Job(plan, _strategy(plan, strategy), app, data), None if folder is None else Path(folder), on_progress, resume=resume)


def simulate_file(
    path: str | Path,
    clients: int | None = None,
    overrides: Iterable[str] = (),
    folder: str | Path | None = None,
    on_progress: Watch = lambda _: None,
    *,
    table: job.Table | None = None,
    resume: bool = False,
) -> Simulation:
    """Simulate a job file: the same plan and app that would be submitted to a coordinator.

    Args:
        path: the job file; the app is imported from its folder.
        clients: how many virtual clients.
        overrides: ``a.b=value`` settings that win over the file.
        folder: as in ``simulate``.
        on_progress: as in ``simulate``.
        table: where the data come from; without it the app's module says so, see ``fedscale_simulations.job``.
        resume: as in ``simulate``.

    Raises:
        PlanError: the file is no valid plan.
        AppError: the app cannot be imported, or as in ``simulate``.
        DataError: there are no data, or they cannot be spread.
        ConfigError, NotFound: as in ``simulate``.
    """
    file = Path(path)
    plan = Plan.load(file, overrides)
    with job.importable(file.parent):
        app, module = job.load(plan, file.parent)
        data = table.population(clients, plan.job.seed) if table else job.population(module, clients, plan.job.seed)
        return _simulate(Job(plan, _strategy(plan, None), app, data), None if folder is None else Path(folder), on_progress, resume=resume)
