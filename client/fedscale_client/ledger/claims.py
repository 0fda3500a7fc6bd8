"""What a task claims of a site's privacy, and the cap it must fit under."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedscale.privacy.events import Spend, from_json


@dataclass(frozen=True, slots=True)
class Claim:
    """One task's claim.

    Args:
        run: the coordinator's run.
        phase: ``init``, ``train``, ``evaluate`` or ``message``.
        number: the round.
        dataset: the dataset's name.
        population: whose data it is; datasets of the same people share one.
        spends: what answering costs; empty where the answer tells nothing of the data, ``None`` where nothing protects it.
        unit: whose presence is hidden: ``record``, ``patient`` or ``node``; empty without protection.
        delta: the delta the plan asks for; 0 without protection.
        data: SHA-256 of the data; empty where it was not looked at.
        plan: SHA-256 of the run's plan.
        app: SHA-256 of the app's bundle.
        coordinator: federation and address of whoever asks.
        answers: how many its run may give at this cost, this one included; room is kept for the rest of them. 0: for none.
        until: when that room is free again whatever happens, ISO 8601.
    """

    run: str
    phase: str
    number: int
    dataset: str
    population: str
    spends: tuple[Spend, ...] | None
    unit: str = ""
    delta: float = 0.0
    data: str = ""
    plan: str = ""
    app: str = ""
    coordinator: str = ""
    answers: int = 0
    until: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Run, phase and round."""
        return self.run, self.phase, self.number

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)  # spends become objects as ``events.from_json`` reads them

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Claim:
        """Read what ``to_json`` gave.

        Raises:
            ConfigError, TypeError, KeyError: anything else.
        """
        return cls(**{**tree, "spends": None if tree["spends"] is None else from_json(tree["spends"])})


@dataclass(frozen=True, slots=True)
class Cap:
    """The most a site gives away of one population: ``epsilon`` at ``delta`` for one unit, over everything that ever leaves."""

    epsilon: float
    delta: float
    unit: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """An answer as it leaves the site.

    Args:
        digest: SHA-256 of its bytes.
        size: how many.
        parts: names and shapes of what it holds.
        masked: whether only a sum with other sites' answers can be read.
    """

    digest: str
    size: int
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    masked: bool = False


def to_set(dataset: str, **rules: object) -> str:
    """The command that gives a dataset some rules, by name and value as one types them."""
    own = f'"{dataset}"' if "." in dataset else dataset
    return " ".join(("fedscale node policy set", *(shlex.quote(f"datasets.{own}.{name}={value}") for name, value in rules.items())))


def canonical(tree: Any) -> str:
    """One text for one value: what is hashed and signed."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
