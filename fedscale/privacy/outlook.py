"""What a plan's privacy would cost and what noise it would take, by each mechanism that could give it, before anybody trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedscale.errors import PlanError
from fedscale.learner import Phase, Training
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.clip import BIT
from fedscale.privacy.dp import DP
from fedscale.privacy.events import Spend
from fedscale.privacy.rounds import NODES, SHARED, Way, spend_of, spends_over, way_of
from fedscale.privacy.statement import Statement, state

FACTORS = tuple(2.0 ** (at / 2) for at in range(-2, 6))


@dataclass(frozen=True, slots=True)
class Prospect:
    """One mechanism under a plan.

    Args:
        mechanism: ``dpsgd``, ``union``, ``fedavg`` or, where the plan asks for it, ``ftrl``.
        chosen: whether it is the plan's.
        units: records or patients at the site that it is worked out for; at all sites together for ``union``, 1 where nodes are hidden.
        spend: what one round costs.
        rounds: how many there are.
        noise: standard deviation of the noise on a coordinate of one step's mean over all sites, in clips; that of a tree, spread evenly.
        per_round: epsilon of one round alone.
        statement: about all rounds together.
    """

    mechanism: Way
    chosen: bool
    units: int
    spend: Spend
    rounds: int
    noise: float
    per_round: float
    statement: Statement

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        tree = asdict(self)
        return tree | {"statement": self.statement.to_json()}


@dataclass(frozen=True, slots=True)
class Trade:
    """What another amount of noise would give: ``noise`` as in ``Prospect``."""

    mechanism: Way
    units: int
    noise_multiplier: float
    noise: float
    epsilon: float


def prospects(dp: DP, training: Training, rounds: int, units: Sequence[int], *, masked: bool) -> list[Prospect]:
    """Each mechanism, the plan's own among them.

    Args:
        dp: the promise.
        training: the plan's local training.
        rounds: the plan's rounds.
        units: records or patients of each site.
        masked: whether the plan turns secure aggregation on.

    Raises:
        PlanError: the promise cannot be kept, or a site without units.
    """
    if not units or min(units) < 1:
        raise PlanError("each site needs at least one unit of privacy", where="--units")
    own = way_of(dp, masked=masked)
    return [_prospect(dp, training, rounds, way, count, units, own) for way, count in _ways(dp, units)]


def trades(prospect: Prospect, delta: float) -> list[Trade]:
    """Half to almost six times the noise of a prospect, and the epsilon of each."""
    found = []
    for factor in FACTORS:
        spend = replace(prospect.spend, noise_multiplier=prospect.spend.noise_multiplier * factor)
        cost = epsilon(spends_over(spend, prospect.rounds), delta)
        found.append(Trade(prospect.mechanism, prospect.units, spend.noise_multiplier, prospect.noise * factor, cost))
    return found


def _ways(dp: DP, units: Sequence[int]) -> Iterator[tuple[Way, int]]:
    """Mechanisms and the number of units of each: DP-SGD once for every size of a site."""
    if dp.unit != "node":
        for count in sorted(set(units)):
            yield "dpsgd", count
        yield "union", sum(units)
    yield "fedavg", 1
    if dp.mechanism == "ftrl":
        yield "ftrl", 1


def _loudness(dp: DP, way: Way, spend: Spend) -> float:
    """What the noise multiplier is to be taken by where the mechanism has more or less noise than one draw a round of its size."""
    if way == "ftrl":
        # Half the levels of a tree are in a running sum; independent noise would have grown with every round.
        return math.sqrt(spend.steps.bit_length() / 2 / spend.steps)
    return math.hypot(1.0, BIT) if way == "fedavg" and dp.clip_quantile is not None else 1.0


def _prospect(dp: DP, training: Training, rounds: int, way: Way, count: int, units: Sequence[int], own: Way) -> Prospect:
    unit = "node" if way in NODES else dp.unit
    asked = dp.model_copy(update={"mechanism": way, "unit": unit})
    spend = spend_of(asked, training, rounds, Phase.TRAIN, count, masked=way in SHARED)
    if spend is None:
        raise PlanError("the plan trains nothing", where="strategy.rounds")
    noise = spend.noise_multiplier * _loudness(dp, way, spend) / (len(units) if way in NODES else spend.sampling_rate * count)
    if way == "dpsgd":
        noise /= math.sqrt(len(units))
    about = state(spends_over(spend, rounds), dp.delta, unit)
    return Prospect(way, way == own, count, spend, rounds, noise, epsilon([spend], dp.delta), about)
