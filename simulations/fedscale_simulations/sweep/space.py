"""What a sweep searches: the ``[sweep]`` table of a job file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from fedscale.errors import PlanError
from fedscale.metrics import HIGHER_IS_BETTER
from fedscale.plan import BESIDES, Plan
from fedscale.tables import Document, Section

TABLE = "sweep"
Value: TypeAlias = bool | int | float | str
Settings: TypeAlias = Mapping[str, Value]


class Dimension(Section):
    """The values of one setting: ``choices``, or a range from ``low`` to ``high``, whole numbers where both are.

    ``log`` draws on a logarithmic scale, ``step`` in steps from ``low`` on.
    """

    choices: tuple[Value, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise ValueError("give choices = [...], or low and high")
        if self.choices and (self.low, self.high, self.step, self.log) != (None, None, None, False):
            raise ValueError("choices go without low, high, step and log")
        if self.low is not None and self.high is not None and not (0 if self.log else -1e300) < self.low < self.high <= 1e300:
            raise ValueError("low must be below high, and above zero on a logarithmic scale")
        if self.log and self.step is not None:
            raise ValueError("a logarithmic scale has no steps")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and (self.step is None or isinstance(self.step, int))

    @property
    def example(self) -> Value:
        """One of the values."""
        return self.choices[0] if self.choices or self.low is None else self.low


class Sweep(Section):
    """What is searched: ``space`` maps settings such as ``"train.optimizer.lr"`` to their values; the trial with the best last
    ``monitor`` wins (by default the one that the plan monitors). ``direction`` is ``minimize`` or ``maximize``; by default it
    is the metric's own.
    """

    space: dict[str, Dimension] = Field(min_length=1)
    monitor: str = Field("", pattern=r"^((train|evaluate)\.[a-z][a-z0-9_]*)?$")
    direction: Literal["", "minimize", "maximize"] = ""


class Search:
    """A job file's sweep, checked.

    Args:
        job: the file.
        overrides: ``a.b=value`` settings that hold in every trial.

    Raises:
        PlanError: with file and line of the first problem.
    """

    def __init__(self, job: Path, overrides: tuple[str, ...] = ()) -> None:
        self.job, self.overrides = job, overrides
        self._document = Document.load(job, overrides, {Sweep.model_fields["monitor"].metadata[0].pattern: MONITOR})
        self.plan = self._document.read(Plan, besides=BESIDES)
        if TABLE not in self._document.tree:
            hint = 'add [sweep.space] with lines such as "train.epochs" = { low = 1, high = 5 }'
            raise PlanError("the job file has no [sweep] table", where=str(job), hint=hint)
        self.sweep = self._document.read(Sweep, TABLE)
        for setting, dimension in self.sweep.space.items():
            self._require(setting, dimension)
        _, _, name = self.monitor.partition(".")
        if self.monitor.startswith("evaluate.") and name not in self.plan.evaluate.pooled:
            known = ", ".join(self.plan.evaluate.pooled)
            raise PlanError(f"{TABLE}.monitor: '{name}' is not among the metrics {known}", where=self._document.where((TABLE, "monitor")))

    @property
    def monitor(self) -> str:
        """The metric that decides, as ``phase.metric``."""
        return self.sweep.monitor or f"evaluate.{self.plan.evaluate.monitor}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """``minimize`` or ``maximize``."""
        return self.sweep.direction or ("maximize" if self.monitor.partition(".")[2] in HIGHER_IS_BETTER else "minimize")

    @property
    def facts(self) -> dict[str, Any]:
        """What makes this search another one than those in other folders."""
        return {"plan": self.plan.digest, "space": self.sweep.model_dump(mode="json"), "monitor": self.monitor}

    def tree(self, settings: Settings) -> dict[str, Any]:
        """The job file with these settings, as a tree without the sweep."""
        tree = Document.load(self.job, (*self.overrides, *as_overrides(settings))).tree
        return {name: table for name, table in tree.items() if name != TABLE}

    def _require(self, setting: str, dimension: Dimension) -> None:
        """Refuse a setting that no plan has, or a first value that it does not take."""
        try:
            Document.load(self.job, (*self.overrides, *as_overrides({setting: dimension.example}))).read(Plan, besides=BESIDES)
        except PlanError as error:
            raise PlanError(error.what, where=self._document.where((TABLE, "space", setting)), why=error.why, hint=error.hint) from None


MONITOR = 'write phase.metric, as in "evaluate.accuracy"'


def as_overrides(settings: Settings) -> tuple[str, ...]:
    """Settings as ``a.b=value`` with values in TOML."""
    return tuple(f"{name}={_toml(value)}" for name, value in settings.items())


def _toml(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if not isinstance(value, str) else f'"{value}"'
