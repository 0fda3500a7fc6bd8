"""A simulation between two rounds as one file: vectors as safetensors, everything else as JSON in its header."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from fedscale.errors import ConfigError, NotFound
from fedscale.masked import Ground
from fedscale.plan import Plan
from fedscale.record import JSON, RunRecord
from fedscale.run import RUNNING, Run
from fedscale.strategy import Strategy
from fedscale.vector import Vector
from fedscale_simulations.files import replace_file

FILE, WORLD = "checkpoint.safetensors", "world/"
State: TypeAlias = tuple[dict[str, Any], dict[str, Vector]]
CHEAP, SHARE = 0.002, 20.0


def save(folder: Path, run: Run, record: RunRecord, world: State = ({}, {})) -> None:
    """Write the run as it stands, between two rounds, what is on record so far, and what goes on in the world.

    Raises:
        ConfigError: the folder cannot be written.
    """
    facts, vectors = run.snapshot()
    vectors |= {f"{WORLD}{name}": vector for name, vector in world[1].items()}
    texts = {"facts": json.dumps(facts), "record": record.to_json(), "world": json.dumps(world[0])}
    replace_file(folder / FILE, safetensors.numpy.save(vectors, texts))


@dataclass
class Keeper:
    """Saves a run after every phase; checkpoints that take long are left out so that they cost a twentieth of the time at most.

    Args:
        folder: where; nothing is saved without one.
    """

    folder: Path | None
    _again: float = 0.0

    def keep(self, run: Run, record: Callable[[], RunRecord], world: Callable[[], State] = lambda: ({}, {})) -> None:
        """Save the run as it stands, unless it goes on and the last checkpoint was a moment ago.

        Raises:
            ConfigError: the folder cannot be written.
        """
        began = time.monotonic()
        if self.folder is None or (run.status == RUNNING and began < self._again):
            return
        save(self.folder, run, record(), world())
        took = time.monotonic() - began
        self._again = time.monotonic() + (SHARE * took if took > CHEAP else 0.0)


def load(
    folder: Path, plan: Plan, strategy: Strategy, names: tuple[str, ...], facts: Mapping[str, JSON], ground: Ground
) -> tuple[Run, RunRecord, State]:
    """The run that ``save`` saw, its record, and what went on in the world.

    Args:
        folder: where ``save`` wrote it.
        plan: the plan, which must be the same.
        strategy: the strategy, likewise.
        names: the clients, likewise.
        facts: what its record must say of population and devices.
        ground: how the run computes its sums.

    Raises:
        NotFound: there is no checkpoint in the folder.
        ConfigError: it is damaged, or belongs to another plan or other clients.
    """
    path = folder / FILE
    with _opened(path) as file:
        header = file.metadata()
        vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        state, record, world = json.loads(header["facts"]), RunRecord.from_json(header["record"]), json.loads(header["world"])
    _require_same(path, plan, names, record)
    if changed := [key for key in ("population", "devices") if record.extra.get(key) != facts.get(key)]:
        raise ConfigError(f"the checkpoint belongs to another {changed[0]}", where=str(path), hint="resume with the same data and devices")
    going_on = {name.removeprefix(WORLD): vector for name, vector in vectors.items() if name.startswith(WORLD)}
    own = {name: vector for name, vector in vectors.items() if not name.startswith(WORLD)}
    return Run.restore(plan, strategy, state, own, ground), record, (world, going_on)


def recorded(folder: Path) -> RunRecord:
    """What was on record when ``save`` wrote the checkpoint; whether it fits a plan is for ``load`` to say.

    Raises:
        NotFound: there is no checkpoint in the folder.
        ConfigError: it is damaged.
    """
    with _opened(folder / FILE) as file:
        return RunRecord.from_json(file.metadata()["record"])


def begun_by(folder: Path, plan: Plan) -> bool:
    """Whether the checkpoint in a folder is one of this plan, so that it can be gone on with."""
    try:
        return recorded(folder).plan_hash == plan.digest
    except (NotFound, ConfigError):
        return False


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A checkpoint to read from; what goes wrong meanwhile says that it is damaged."""
    if not path.is_file():
        raise NotFound("there is no checkpoint to resume from", where=str(path), hint="give the folder of an interrupted simulation")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("a checkpoint is damaged", where=str(path), why=type(error).__name__) from None


def _require_same(path: Path, plan: Plan, names: tuple[str, ...], record: RunRecord) -> None:
    """Refuse to go on with another plan, which would give a model that no plan describes."""
    ours = plan.to_toml().splitlines()
    other = next((line for line in record.plan_toml.splitlines() if line and line not in ours), "")
    if record.plan_hash != plan.digest:
        raise ConfigError(
            "the checkpoint belongs to another plan", where=str(path), why=f"it has {other}" if other else "", hint="resume with the same plan"
        )
    if record.nodes != names:
        raise ConfigError("the checkpoint belongs to other clients", where=str(path), hint="resume with the same data")
