"""The privacy ledger of every virtual client, in memory: what each has released, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fedscale.events import Outcome
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Spend, repeated
from fedscale.privacy.rounds import spend_of
from fedscale.privacy.statement import promised
from fedscale.privacy.units import units_of
from fedscale.record import JSON

MOST_SITES = 1000


def spends(plan: Plan, data: Mapping[str, Any], history: Iterable[Outcome]) -> dict[str, tuple[Spend, ...]]:
    """What each client has released in all rounds that it answered, by name; empty where the plan asks for no privacy."""
    dp = plan.privacy
    if dp is None:
        return {}
    answered = Counter(name for outcome in history if outcome.phase == Phase.TRAIN for name in outcome.answered)
    released: dict[str, tuple[Spend, ...]] = {}
    for name in sorted(answered):
        units = 1 if dp.unit == "node" else units_of(data[name], dp.unit)  # whole clients are not opened to be counted
        each = spend_of(dp, plan.train, plan.strategy.rounds, Phase.TRAIN, units, masked=plan.secagg.enabled)
        if each is not None:
            released[name] = repeated(each, answered[name])
    return released


def statement(plan: Plan, data: Mapping[str, Any], history: Iterable[Outcome]) -> dict[str, JSON]:
    """The entry ``privacy`` of a record: the largest epsilon of a client, under which assumptions, and that of each of up to a thousand."""
    dp = plan.privacy
    if dp is None:
        return {}
    spent = {name: epsilon(spent, dp.delta) for name, spent in spends(plan, data, history).items()}
    facts: dict[str, JSON] = {
        **promised(dp, masked=plan.secagg.enabled),
        "epsilon": max(spent.values(), default=0.0),
        "chance": "from the plan's seed, so that the simulation can be repeated; it hides nobody",
    }
    return {"privacy": facts | ({"sites": spent} if len(spent) <= MOST_SITES else {})}
