"""What people hand to ``simulate``: checked before anything is made of it, and read like a job file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel

from fedscale.errors import PlanError
from fedscale.plan import Plan
from fedscale.secagg.parameters import FEWEST
from fedscale.strategy import STRATEGIES, Strategy
from fedscale.tables import Document

Given: TypeAlias = BaseModel | Mapping[str, Any] | None

PLACE = "fs.simulate"
FOLDER = 'give a path, as in "runs/first"'
KINDS: Mapping[str, tuple[Any, str]] = {
    "strategy": (Strategy | None, "give what a strategy's function returns, as in strategy=fs.fed_avg()"),
    "plan": (Plan | None, 'read one with fs.Plan.load(Path("job.toml"))'),
    "folder": (str | os.PathLike | None, FOLDER),
    "resume": (str | os.PathLike | None, FOLDER),
    "workers": (int | None, "give a number of processes, from 1 up"),
    "on_progress": (Callable, "give a function that takes a Progress"),
}


def require_kinds(**given: object) -> None:
    """Refuse arguments that no text could stand for and that are of a wrong type.

    Raises:
        PlanError: names the argument, and how to come by one.
    """
    for name, value in given.items():
        kind, hint = KINDS[name]
        if not isinstance(value, kind):
            raise PlanError(f"{name} is {_said(value)}", where=PLACE, hint=_named(value) if kind == Strategy | None else hint)
    workers = given.get("workers")
    if isinstance(workers, int) and (workers < 1 or isinstance(workers, bool)):
        raise PlanError(f"workers is {workers}", where=PLACE, hint=KINDS["workers"][1])


def plan_of(tables: Mapping[str, Given], metrics: tuple[str, ...], clients: int) -> Plan:
    """The plan of these tables, read like a file's; an evaluation that names no metrics gets the app's.

    Noise in shares is made for the fewest answers of a round, and in a simulation everybody who is asked answers.

    Raises:
        PlanError: names the setting that is wrong.
    """
    tree = {name: _tree(value) for name, value in tables.items()}
    if isinstance(tree["evaluate"], dict):
        tree["evaluate"].setdefault("metrics", metrics)
    if "secagg" in tree and isinstance(tree["clients"], dict):
        everybody = "privacy" in tree and set(tree["clients"]) <= {"deadline", "rejoin"}
        tree["clients"].setdefault("min_per_round", max(FEWEST, clients) if everybody else FEWEST)
    return Document(PLACE, tree, {}).read(Plan)


def described(strategy: Strategy) -> dict[str, Any]:
    """A strategy as its table in a plan; one that was composed by hand says how its nodes count."""
    composed = {"weighting": strategy.weighting} if strategy.name == "custom" and strategy.weighting != "examples" else {}
    return {"name": strategy.name, **strategy.params, **composed}


def _tree(value: object) -> Any:
    """A table as a file would hold it; what is none is for the plan to refuse."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return {} if value is None else dict(value) if isinstance(value, Mapping) else value


def _said(value: object) -> str:
    return "a function" if callable(value) and not isinstance(value, type) else f"of type {type(value).__name__}"


def _named(value: object) -> str:
    """How to come by the strategy that somebody means by a name or by its function."""
    name = value.replace("_", "") if isinstance(value, str) else getattr(value, "__name__", "").replace("_", "")
    function = STRATEGIES.get(name)
    return f"write strategy=fs.{function.__name__}()" if function else KINDS["strategy"][1]
