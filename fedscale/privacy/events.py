"""``Spend``: one release and what it costs in privacy, in the form in which ledgers, statements and commands keep it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from fedscale.errors import ConfigError

MOST_STEPS = 1_000_000_000
LEAST_NOISE, MOST_NOISE = 1e-3, 1e9


class Mechanism(StrEnum):
    """How a release was made private. ``noise_multiplier`` is always the noise's scale over the sensitivity.

    The scale is the standard deviation, for ``laplace`` the parameter b. Poisson sampling counts for ``poisson_subsampled_gaussian``, ``laplace``,
    ``discrete_gaussian`` and ``skellam``; a plain ``gaussian`` and ``tree_aggregation`` take everybody. One spend of ``tree_aggregation`` is one
    tree over its ``steps``, to which each unit contributes once.
    """

    GAUSSIAN = "gaussian"
    SAMPLED_GAUSSIAN = "poisson_subsampled_gaussian"
    LAPLACE = "laplace"
    TREE = "tree_aggregation"
    DISCRETE_GAUSSIAN = "discrete_gaussian"
    SKELLAM = "skellam"


WHOLE = (Mechanism.GAUSSIAN, Mechanism.TREE)


@dataclass(frozen=True, slots=True)
class Spend:
    """So many releases of one kind.

    Args:
        mechanism: a name out of ``Mechanism``.
        noise_multiplier: scale of the noise over the sensitivity, 0.001 to 1e9.
        sampling_rate: chance of each unit to be in a release, drawn in secret and anew each time; 1 where everybody is.
        steps: number of releases.

    Raises:
        ConfigError: a value that cannot be accounted, with its name in ``where``.
    """

    mechanism: str
    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        known = [str(each) for each in Mechanism]
        if self.mechanism not in known:
            raise ConfigError("unknown mechanism", where="mechanism", hint=f"known: {', '.join(known)}")
        _require_number(self.noise_multiplier, "noise_multiplier", LEAST_NOISE, MOST_NOISE)
        _require_number(self.sampling_rate, "sampling_rate", 0.0, 1.0)
        if self.sampling_rate == 0:
            raise ConfigError("sampling_rate is 0", where="sampling_rate", hint="leave out what was never released")
        if self.mechanism in WHOLE and self.sampling_rate != 1:
            hint = f"use {Mechanism.SAMPLED_GAUSSIAN} where each unit's presence is drawn in secret"
            raise ConfigError(f"{self.mechanism} is not amplified by sampling", where="sampling_rate", hint=hint)
        if type(self.steps) is not int or not 1 <= self.steps <= MOST_STEPS:
            raise ConfigError("steps must be a whole number", where="steps", why=f"1 to {MOST_STEPS}")


def repeated(spend: Spend, times: int) -> tuple[Spend, ...]:
    """The same release so many times; a tree's steps are its rounds, so that two trees are two spends."""
    return (spend,) * times if spend.mechanism == Mechanism.TREE else (replace(spend, steps=spend.steps * times),)


def _require_number(value: object, name: str, least: float, most: float) -> None:
    """Refuse what is no finite number within its range."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    # Written so that NaN fails as well: every comparison with NaN is false.
    if not least <= number <= most:
        raise ConfigError(f"{name} must be a number", where=name, why=f"{least:g} to {most:g}")


def to_json(spends: Iterable[Spend]) -> list[dict[str, Any]]:
    """Spends as JSON: ``[{mechanism, noise_multiplier, sampling_rate, steps}, ...]``."""
    return [asdict(spend) for spend in spends]


def from_json(rows: object) -> tuple[Spend, ...]:
    """Read what ``to_json`` wrote; ``sampling_rate`` and ``steps`` may be left out.

    Raises:
        ConfigError: with the index and the key of the first problem in ``where``.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ConfigError("events must be a list", why=f"this is {type(rows).__name__}", hint='[{"mechanism": ..., "noise_multiplier": ...}]')
    return tuple(_spend(row, at) for at, row in enumerate(rows))


def read(text: str) -> tuple[Spend, ...]:
    """``from_json`` of a text.

    Raises:
        ConfigError: no JSON, or as ``from_json``.
    """
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the events are not JSON", why=str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__) from None
    return from_json(rows)


def _spend(row: object, at: int) -> Spend:
    """One row as a spend; errors say which row."""
    names = [each.name for each in fields(Spend)]
    if not isinstance(row, Mapping):
        raise ConfigError("an event must be an object", where=f"[{at}]", why=f"this is {type(row).__name__}")
    if unknown := sorted(str(key) for key in row if key not in names):
        raise ConfigError(f"'{unknown[0]}' is no key of an event", where=f"[{at}]", hint=f"known: {', '.join(names)}")
    if missing := [name for name in names[:2] if name not in row]:
        raise ConfigError(f"'{missing[0]}' is missing", where=f"[{at}].{missing[0]}")
    try:
        return Spend(**row)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"[{at}].{error.where}", why=error.why, hint=error.hint) from None
