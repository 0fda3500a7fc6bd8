"""What a job file names: its plan, and the app and the data behind it.

The app of a simulation is imported from the folder of the job file. Its virtual clients come, in this order, from

1. the ``Table`` that is given, a CSV file and a way to spread its rows;
2. the attribute ``population`` of the app's module: a function ``(clients, seed)`` that returns a ``Population`` or any
   other mapping of client names to datasets. ``clients`` is the number asked for, or ``None`` when nobody asked; ``seed``
   is the job's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fedscale.causes import attempted
from fedscale.data import Dataset, Population, from_csv
from fedscale.errors import AppError, DataError, FedscaleError, PlanError
from fedscale.learner import Learner
from fedscale.plan import Plan, require_countable
from fedscale.privacy.rounds import way_of
from fedscale.secagg.parameters import FEWEST
from fedscale.strategy import Strategy
from fedscale.task import require_hiding
from fedscale.torch_learner import TorchLearner, as_learner
from fedscale_simulations.engines.desk import keep
from fedscale_simulations.failures import failure_of


@dataclass(frozen=True)
class Job:
    """All that a simulation needs.

    Args:
        plan: the configuration.
        strategy: the strategy the plan names, or one composed in Python.
        learner: does the clients' work.
        data: what each client has, by name.

    Raises:
        DataError: ``data`` is no mapping of clients.
        AppError: the learner cannot compute a metric of the plan, or not hide what the plan wants hidden.
        PlanError: the strategy cannot run with the plan's privacy, or the plan needs more clients than there are.
    """

    plan: Plan
    strategy: Strategy
    learner: Learner
    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Find faults before the first round that would, later, look like those of every client."""
        require_clients(self.data)
        require_enough(self.plan, self.strategy, len(self.data))
        if isinstance(self.learner, TorchLearner):
            self.learner.check(self.plan.evaluate.metrics)
        dp = self.plan.privacy
        if dp is not None:
            require_countable(self.strategy, way_of(dp, masked=self.plan.secagg.enabled))
            require_hiding(self.learner, dp.unit)


@dataclass(frozen=True)
class Table:
    """A CSV file whose rows are spread over virtual clients.

    Args:
        path: the file; its first line names the columns.
        label: the column to predict.
        kind: how to spread: ``iid``, ``dirichlet``, ``shards``, ``quantity`` or ``column``.
        options: the option of the kind, such as ``{"alpha": 0.5}``; see ``Dataset.partition``. The ``column`` of that kind
            may hold text, and is no feature.
        columns: the features, in this order; by default all other columns.
        missing_policy: ``refuse`` a file with a missing value, or ``drop`` such rows.
    """

    path: Path
    label: str
    kind: str = "iid"
    options: Mapping[str, float | str] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    missing_policy: str = "refuse"

    def population(self, clients: int | None, seed: int) -> Population:
        """The virtual clients; ten where nobody says how many and the kind does not.

        Raises:
            DataError: the file cannot be read or its rows cannot be spread so.
        """
        if clients is None and self.kind != "column":
            clients = 10
        owner, options = None, dict(self.options)
        if self.kind == "column" and "column" in options:
            owner = str(options.pop("column"))
        rows = from_csv(self.path, self.label, self.columns, owner, missing_policy=self.missing_policy)
        return rows.partition(self.kind, clients, seed, **options)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let Python find the modules of a folder first, and forget them afterwards.

    Modules of the same names that were loaded from elsewhere step aside meanwhile.
    """
    place = str(folder.resolve())
    fresh = {name for name in _modules_in(folder) if not _lies_in(sys.modules.get(name), folder)}
    aside = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in fresh}
    for name in aside:
        del sys.modules[name]
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)
        # Some modules cannot be loaded twice: one from elsewhere, to which a mere directory gave way, stays.
        own = {name for name in fresh if _is_spread(name) or _lies_in(sys.modules.get(name), folder)}
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(aside)


def assemble(plan: Plan, folder: Path, clients: int | None, table: Table | None) -> Job:
    """A plan with its app and data; call it where the plan's folder is ``importable``.

    Raises:
        PlanError: the plan's strategy exists only in Python.
        AppError: the app cannot be imported or is none, or its ``population`` fails.
        DataError: there are no data, or they cannot be spread.
    """
    strategy = strategy_of(plan)
    name, _, attribute = plan.job.app.partition(":")
    module = attempted(lambda: importlib.import_module(name))
    if isinstance(module, Exception):
        fault = failure_of(module)
        raise AppError(f"the app's module '{name}' cannot be imported", where=fault.where or str(folder), why=fault.what, hint=fault.hint) from module
    if not hasattr(module, attribute):
        raise AppError(f"the app's module '{name}' has no '{attribute}'", where=str(folder), hint="set job.app to module:attribute")
    data = table.population(clients, plan.job.seed) if table else _population(module, clients, plan.job.seed)
    learner = as_learner(getattr(module, attribute), keep(data))
    return Job(plan, strategy, learner, data)


def strategy_of(plan: Plan, strategy: Strategy | None = None) -> Strategy:
    """The strategy a plan names, or the given one where the plan says it was composed in Python.

    Raises:
        PlanError: there is none, or one too many.
    """
    if (plan.strategy.name == "custom") != (strategy is not None):
        what = "the plan names a strategy and one is given" if strategy else "the plan's strategy was composed in Python"
        raise PlanError(what, where="strategy.name", hint='a strategy is given where the plan says name = "custom"')
    return strategy or plan.strategy.build()


def require_clients(data: object) -> None:
    """Refuse what is no mapping of clients.

    Raises:
        DataError: with the way to spread a dataset, where it is one.
    """
    if isinstance(data, Dataset):
        raise DataError("the data are one dataset", why="a simulation needs clients", hint='spread it: data.partition("iid", clients=10)')
    if isinstance(data, Population):
        return
    if not isinstance(data, Mapping):
        made = 'a data frame: fs.data.from_frame(data, label="y")' if hasattr(data, "columns") else "arrays: fs.data.from_arrays(x, y)"
        hint = f'of {made}.partition("iid", clients=10)'
        raise DataError(f"the data are of type {type(data).__name__}", why="a mapping from the names of clients to their data is expected", hint=hint)
    if not data:
        raise DataError("there are no clients", why="the mapping from their names to their data is empty")
    if odd := [name for name in data if not isinstance(name, str)]:
        raise DataError(f"the name of a client is of type {type(odd[0]).__name__}", why="text is expected")


def require_enough(plan: Plan, strategy: Strategy, there: int) -> None:
    """Refuse a plan that no round of so many clients could fulfil. A coordinator would wait for more; in a simulation none ever come.

    Raises:
        PlanError: with both numbers.
    """
    clients, evaluate = plan.clients, plan.evaluate
    wanted = {
        "clients.min_per_round": clients.min_per_round,
        "clients.wait_for": clients.wait_for,
        "clients.select": clients.select,
        "evaluate.select": evaluate.select if evaluate.every else None,
        "strategy.buffer": strategy.buffer,
    }
    for name, number in wanted.items():
        if isinstance(number, int) and number > there:
            have = "there is only one" if there == 1 else f"there are only {there}"
            lower = f"lower it to {there}, or " if there >= FEWEST or not plan.secagg.enabled else ""
            raise PlanError(f"{number} clients are needed and {have}", where=name, hint=f"{lower}simulate more clients")


def _population(module: ModuleType, clients: int | None, seed: int) -> Mapping[str, Any]:
    """What the app's module says about the virtual clients."""
    make = getattr(module, "population", None)
    if not callable(make):
        raise DataError(
            f"the module '{module.__name__}' says nothing about the data of a simulation",
            hint="give a CSV file and its label, or define population(clients, seed) beside the app",
        )
    data: Mapping[str, Any] | Exception = attempted(lambda: make(clients, seed))
    if isinstance(data, FedscaleError):
        raise data  # which says itself what is wrong
    if isinstance(data, Exception):
        fault = failure_of(data)
        raise AppError("population(clients, seed) failed", where=fault.where or module.__name__, why=fault.what) from data
    return data


def _modules_in(folder: Path) -> set[str]:
    """Names of modules and packages in a folder; a directory without ``__init__.py`` gives way to a module from elsewhere, as in Python."""

    def counts(entry: Path) -> bool:
        return entry.suffix == ".py" or (entry / "__init__.py").exists() or (entry.is_dir() and _is_spread(entry.name))

    return {entry.stem for entry in folder.iterdir() if counts(entry)} - sys.stdlib_module_names


def _is_spread(name: str) -> bool:
    """Whether a module of that name, where one is loaded, is a package without a file of its own."""
    return getattr(sys.modules.get(name), "__file__", None) is None


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    """Whether a module is there and was loaded from a folder."""
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve().is_relative_to(folder.resolve())
