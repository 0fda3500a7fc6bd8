"""What virtual clients have spent, from no more of them than that takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from fedscale.events import Outcome
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.privacy.dp import DP
from fedscale.privacy.events import repeated
from fedscale.privacy.rounds import spend_of
from fedscale_simulations import budgets
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, sites

NODE: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "unit": "node", "mechanism": "ftrl", "tree_rounds": 1}
RECORD: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "unit": "record"}


class Closed(Mapping[str, Any]):
    """Clients of whom nobody may see more than the names."""

    def __getitem__(self, name: str) -> Any:
        raise LookupError(f"{name} was opened")

    def __iter__(self) -> Iterator[str]:
        return iter(sites(3))

    def __len__(self) -> int:
        return len(sites(3))


def planned(privacy: dict[str, Any]) -> Plan:
    """A plan of three rounds that asks for this."""
    told = simulate(Mean(), sites(3), rounds=1, evaluate={"every": 0}).record.plan_toml
    lines = [f"{name} = {value!r}" for name, value in privacy.items()]
    return Plan.from_toml("\n".join([told.replace("rounds = 1\n", "rounds = 3\n"), "[privacy]", *lines, ""]))


def closed(*answered: tuple[str, ...]) -> list[Outcome]:
    """Rounds of training, by who answered."""
    return [Outcome(number, "train", names, {}, {}, {}, 0.0) for number, names in enumerate(answered, 1)]


def test_whole_clients_are_not_opened_to_be_counted() -> None:
    plan = planned(NODE)
    each = spend_of(DP(**NODE), plan.train, 3, Phase.TRAIN, 1, masked=False)
    assert each is not None
    spent = budgets.spends(plan, Closed(), closed(("site-0", "site-1"), ("site-0",)))
    assert spent == {"site-0": repeated(each, 2), "site-1": repeated(each, 1)}


def test_clients_are_opened_where_their_rows_are_hidden() -> None:
    with pytest.raises(LookupError, match="site-0 was opened"):
        budgets.spends(planned(RECORD), Closed(), closed(("site-0",)))


def test_nobody_spends_by_evaluating_or_without_privacy() -> None:
    outcomes = [Outcome(1, "evaluate", ("site-0",), {}, {}, {}, 0.0)]
    assert budgets.spends(planned(NODE), Closed(), outcomes) == {}
    bare = Plan.from_toml(planned(NODE).to_toml().partition("[privacy]")[0])
    assert budgets.spends(bare, Closed(), closed(("site-0",))) == {}
