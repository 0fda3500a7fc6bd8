"""Plan: the whole configuration of a run as one frozen, validated, hashable value, to and from TOML.

The same file simulates and deploys. Everything is checked when the plan is read, and every problem is reported with
file and line.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fedscale.errors import PlanError
from fedscale.learner import Training
from fedscale.privacy import rounds
from fedscale.privacy.dp import DP
from fedscale.privacy.rounds import Way
from fedscale.ring import SPARE_BITS, FixedPoint
from fedscale.secagg.parameters import FEWEST
from fedscale.secagg.table import Secagg
from fedscale.strategy import STRATEGIES, Strategy
from fedscale.tables import APP, NAME, Document, Section, suggest

# Tables of a job file that say how to simulate or to search, not what to run: no part of the plan and of its hash.
BESIDES = ("devices", "sweep", "tracking")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BUILT_IN_METRICS = ("loss", "accuracy", "auc", "brier")


def seconds(value: object) -> object:
    """Read ``"20m"``, ``"1.5h"``, ``"500ms"`` or a number of seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value)
    if not match:
        raise ValueError("a duration is a number and one of ms, s, m, h, d, as in '20m'")
    return float(match[1]) * UNITS[match[2]]


def selection(value: object) -> object:
    """Check a choice of nodes: ``"all"``, a number or a fraction of them."""
    number = not isinstance(value, bool) and isinstance(value, int) and value >= 1
    if value == "all" or number or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError("write 'all', a number of nodes from 1 up, or a fraction between 0 and 1")


def share(nodes: int, factor: float) -> int:
    """That many times the nodes, rounded up, but not because 0.07 * 100 is a little more than 7 in floating point."""
    return math.ceil(round(nodes * factor, 6))


def require_linear(strategy: Strategy) -> None:
    """Refuse a strategy that needs more than the sum of one round's answers.

    Raises:
        PlanError: it does.
    """
    why = ""
    if strategy.buffer:
        why = "its answers belong to different models, and masks only cancel among nodes that began together"
    elif strategy.led:
        why = "whoever leads it sees each answer by itself, and under masks there is only their sum"
    elif not strategy.aggregator.linear:
        why = "it looks at each node's answer by itself, and under masks there is only their sum"
    if why:
        raise PlanError(f"'{strategy.name}' cannot run under secure aggregation", where="strategy.name", why=why, hint="use fedavg, or no [secagg]")


def require_countable(strategy: Strategy, way: Way) -> None:
    """Refuse a strategy under which nobody could say what an answer costs in privacy.

    Raises:
        PlanError: it is one.
    """
    if strategy.buffer:
        why = "a node may answer more often than there are rounds"
        raise PlanError(f"'{strategy.name}' cannot run with privacy", where="strategy.name", why=why, hint="use fedavg, or no [privacy]")
    if strategy.led:
        why = "what a message's answer costs nobody knows but the app"
        raise PlanError("'led' cannot run with privacy", where="strategy.name", why=why, hint="use fedavg, or no [privacy]")
    if not strategy.aggregator.linear and way in rounds.NODES:
        why = "the noise hides a sum, and it looks at each answer by itself"
        raise PlanError(f"'{strategy.name}' cannot run with privacy for nodes", where="strategy.name", why=why, hint="use fedavg, or no [privacy]")
    if strategy.transforms and way != "dpsgd":
        why = "what changes an answer before its noise is added changes what the noise must hide"
        raise PlanError(f"'{strategy.name}' transforms its updates", where="strategy", why=why, hint="privacy.clip bounds them already")


Duration = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=30 * 86400)]
Select = Annotated[Literal["all"] | int | float, BeforeValidator(selection)]


class Job(Section):
    """What is trained: ``app`` is ``module:attribute`` in the bundle, ``data`` the dataset name every site has declared."""

    name: str = Field(pattern=NAME)
    app: str = Field("app:app", pattern=APP)
    data: str = Field("default", pattern=NAME)
    seed: int = Field(0, ge=0, lt=2**63)


class StrategyTable(Section):
    """Which strategy for how many rounds; all other keys are the strategy's own arguments."""

    model_config = ConfigDict(extra="allow")

    name: str = "fedavg"
    rounds: int = Field(10, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _known(self) -> StrategyTable:
        if self.name == "custom":
            return self
        try:
            self.build()
        except PlanError as error:
            word, own = error.where.removeprefix("strategy."), set(StrategyTable.model_fields)
            meant = "" if word in own else suggest(word, own)
            raise PlanError(error.what, where=error.where, why=error.why, hint=meant if meant.startswith("did you") else error.hint) from None
        return self

    @property
    def weighting(self) -> str:
        """Whether a node counts by its examples or all count the same."""
        return str((self.model_extra or {}).get("weighting", "examples"))

    def build(self) -> Strategy:
        """The strategy value.

        Raises:
            PlanError: unknown name or argument, or an argument out of its range.
        """
        if self.name not in STRATEGIES:
            raise PlanError(f"no strategy '{self.name}'", where="strategy.name", hint=suggest(self.name, STRATEGIES))
        return STRATEGIES[self.name](**(self.model_extra or {}))


class Clients(Section):
    """Who takes part, and how long the round waits.

    ``select``: ``"all"``, a number or a fraction of the eligible nodes. A round closes when that many have answered;
    ``over_select`` asks more. At ``deadline`` it closes with at least ``min_per_round`` answers or fails. A run starts when
    ``wait_for`` nodes are there (default ``min_per_round``); a node that was lost has ``rejoin`` to come back.
    """

    select: Select = "all"
    min_per_round: int = Field(1, ge=1)
    over_select: float = Field(1.0, ge=1.0, le=10.0)
    deadline: Duration = 600.0
    wait_for: int | None = Field(None, ge=1)
    rejoin: Duration = 30.0

    def asked(self, eligible: int) -> tuple[int, int]:
        """``(asked, target)`` of so many eligible nodes: how many are asked and how many answers close the round."""
        wanted = eligible if self.select == "all" else self.select if isinstance(self.select, int) else share(eligible, self.select)
        target = min(eligible, max(wanted, self.min_per_round))
        return min(eligible, share(target, self.over_select)), target


class Aggregate(Section):
    """Bounds that make the sum safe: ``bound`` on one coordinate of a change, ``weight_cap`` on the examples one node may count."""

    bound: float = Field(8.0, gt=0, le=2.0**16)
    weight_cap: float = Field(16384.0, ge=1, le=2.0**26)


class Evaluate(Section):
    """Evaluation on held-out data every ``every`` rounds (0: never) by ``select`` nodes.

    ``holdout`` is the fraction of each dataset kept out of training (0: evaluate on all of it). ``per_site`` shows each
    site's metrics, except below ``min_cell`` examples. With ``patience`` > 0 the run stops after that many evaluations
    without a better ``monitor``.
    """

    every: int = Field(1, ge=0)
    metrics: tuple[str, ...] = ()
    select: Select = "all"
    holdout: float = Field(0.2, ge=0, lt=1)
    per_site: bool = True
    min_cell: int = Field(10, ge=1)
    patience: int = Field(0, ge=0)
    monitor: str = "loss"

    @field_validator("metrics")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [n for n in names if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", n)]:
            raise ValueError(f"'{bad[0]}' is not a metric name")
        if len(set(names)) < len(names):
            raise ValueError("a metric is named twice")
        return names

    @model_validator(mode="after")
    def _monitored(self) -> Evaluate:
        if self.monitor not in self.pooled:
            raise PlanError(f"evaluate.monitor: '{self.monitor}' is not among the metrics {', '.join(self.pooled)}", where="evaluate.monitor")
        return self

    @property
    def pooled(self) -> tuple[str, ...]:
        """All metrics of an evaluation, the loss first."""
        return ("loss", *(m for m in self.metrics if m != "loss"))


class Plan(Section):
    """The whole configuration of a run."""

    job: Job
    strategy: StrategyTable = StrategyTable()
    clients: Clients = Clients()
    train: Training = Training()
    aggregate: Aggregate = Aggregate()
    evaluate: Evaluate = Evaluate()
    secagg: Secagg = Secagg(enabled=False)
    privacy: DP | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        clients = self.clients
        if isinstance(clients.select, int) and clients.select < clients.min_per_round:
            raise PlanError(
                f"clients.select asks {clients.select} nodes but clients.min_per_round needs {clients.min_per_round}", where="clients.select"
            )
        terms = share(clients.select, clients.over_select) if isinstance(clients.select, int) else clients.min_per_round
        FixedPoint.for_sum(terms, self.aggregate.bound, self.secagg.word_bits - SPARE_BITS)
        if self.secagg.enabled:
            self._require_maskable(terms)
        if self.privacy is not None:
            self._require_private(self.privacy, terms)
        return self

    def _require_private(self, dp: DP, nodes: int) -> None:
        """Refuse what the run's privacy cannot be kept with, and prove that the noise fits into the ring.

        Raises:
            PlanError: the setting that stands in the way.
        """
        strategy = None if self.strategy.name == "custom" else self.strategy.build()
        watched = bool(self.evaluate.every)
        way = rounds.require(dp, self.train, masked=self.secagg.enabled, evaluated=watched, holdout=self.evaluate.holdout)
        if strategy is not None:
            require_countable(strategy, way)
        if way == "ftrl":
            self._require_turns(rounds.tree_of(dp, self.strategy.rounds))
        FixedPoint.for_sum(nodes, self.private_bound(dp), self.secagg.word_bits - SPARE_BITS)

    def _require_turns(self, rounds_of_tree: int) -> None:
        """Refuse a choice of nodes that leaves none for the later rounds of a tree.

        Raises:
            PlanError: all nodes or a fraction of them are asked in each round.
        """
        if not isinstance(self.clients.select, int) and rounds_of_tree > 1:
            why = f"a node answers at most once in the {rounds_of_tree} rounds of a tree, so the others must be left for later"
            raise PlanError("'ftrl' asks a number of nodes in each round", where="clients.select", why=why, hint="set clients.select = 10, or so")

    @property
    def shares(self) -> int:
        """How many sites' shares of the noise are surely in a sum."""
        return rounds.makers(self.clients.min_per_round, self.secagg.adversarial)

    def quiet_bound(self, dp: DP) -> float:
        """Largest magnitude of a coordinate before a share of the noise is added; a clipped update has none beyond its clip, nor its bit."""
        return dp.clip if dp.unit == "node" else self.aggregate.bound

    def private_bound(self, dp: DP) -> float:
        """Largest magnitude of a coordinate of an answer under privacy."""
        way = rounds.way_of(dp, masked=self.secagg.enabled)
        if way in rounds.SHARED:
            return self.noisy_bound(dp)
        return self.aggregate.bound if way == "dpsgd" else self.quiet_bound(dp) * (1 + 1e-6)

    def noisy_bound(self, dp: DP) -> float:
        """Largest magnitude of a coordinate with its share of the noise."""
        return self.quiet_bound(dp) * (1 + 1e-6) + rounds.room(dp, self.train, self.strategy.rounds, self.shares)

    def _require_maskable(self, nodes: int) -> None:
        """Refuse what secure aggregation cannot do, with the reason.

        Raises:
            PlanError: it is that.
        """
        if self.clients.min_per_round < FEWEST:
            raise PlanError(
                f"clients.min_per_round is {self.clients.min_per_round}, secure aggregation needs at least {FEWEST}",
                where="clients.min_per_round",
                why="the sum of fewer tells them what the others sent",
                hint=f"set clients.min_per_round = {FEWEST} or more",
            )
        if self.strategy.name != "custom":
            require_linear(self.strategy.build())
        self.secagg.parameters(nodes)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON form, in hex."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The complete plan, defaults included; reads back to an equal plan."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, text: str, *, file: str = "plan", overrides: Iterable[str] = ()) -> Plan:
        """Read a plan.

        Args:
            text: the TOML.
            file: name used in errors.
            overrides: ``a.b=value`` settings that win over the file, values in TOML (bare words are strings).

        Raises:
            PlanError: with file and line of the first problem.
        """
        return Document.of(text, file, overrides).read(cls, besides=BESIDES)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Plan:
        """Read a plan from a file.

        Raises:
            PlanError: unreadable, or as ``from_toml``.
        """
        return Document.load(Path(path), overrides).read(cls, besides=BESIDES)
