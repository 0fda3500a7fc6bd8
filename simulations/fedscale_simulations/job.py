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

from fedscale.data import Population, from_csv
from fedscale.errors import AppError, DataError
from fedscale.plan import Plan


@dataclass(frozen=True)
class Table:
    """A CSV file whose rows are spread over virtual clients.

    Args:
        path: the file; its first line names the columns.
        label: the column to predict.
        kind: how to spread: ``iid``, ``dirichlet``, ``shards``, ``quantity`` or ``column``.
        options: the option of the kind, such as ``{"alpha": 0.5}``; see ``Dataset.partition``.
    """

    path: Path
    label: str
    kind: str = "iid"
    options: Mapping[str, float | str] = field(default_factory=dict)

    def population(self, clients: int | None, seed: int) -> Population:
        """The virtual clients; ten where nobody says how many and the kind does not.

        Raises:
            DataError: the file cannot be read or its rows cannot be spread so.
        """
        if clients is None and self.kind != "column":
            clients = 10
        return from_csv(self.path, self.label).partition(self.kind, clients, seed, **self.options)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let Python find the modules of a folder first, those it has loaded from elsewhere under the same name aside."""
    place = str(folder.resolve())
    own = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").exists()}
    aside = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in own and not _lies_in(module, folder)}
    for name in aside:
        del sys.modules[name]
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)
        for name in [name for name, module in sys.modules.items() if _lies_in(module, folder)]:
            del sys.modules[name]
        sys.modules.update(aside)


def load(plan: Plan, folder: Path) -> tuple[object, ModuleType]:
    """The app that a plan names, and its module; call it where the folder is ``importable``.

    Raises:
        AppError: there is no such module or attribute, or its import fails.
    """
    name, _, attribute = plan.job.app.partition(":")
    try:
        module = importlib.import_module(name)
    except (ImportError, SyntaxError, LookupError, NameError, AttributeError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise AppError(f"the app's module '{name}' cannot be imported", where=str(folder), why=f"{type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise AppError(f"the app's module '{name}' has no '{attribute}'", where=str(folder), hint="name the app in job.app as module:attribute")
    return getattr(module, attribute), module


def population(module: ModuleType, clients: int | None, seed: int) -> Mapping[str, Any]:
    """The virtual clients that an app's module defines.

    Raises:
        DataError: it defines none.
    """
    make = getattr(module, "population", None)
    if not callable(make):
        raise DataError(
            f"the module '{module.__name__}' says nothing about the data of a simulation",
            hint="give a CSV file and its label, or define population(clients, seed) beside the app",
        )
    data = make(clients, seed)
    if not isinstance(data, Mapping) or not data:
        raise DataError(f"population() returned {type(data).__name__}", where=module.__name__, why="a Population with at least one client is expected")
    return data


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module was loaded from a folder."""
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve().is_relative_to(folder.resolve())
