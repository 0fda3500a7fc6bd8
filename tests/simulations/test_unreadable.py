"""A client whose data cannot be had is a failed client, whichever it is; plans that need more clients than there are are refused at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import nn

import fedscale as fs
from fedscale.data import Dataset, Population, from_arrays
from fedscale.errors import Cause, DataError, PlanError
from fedscale.names import Numbered
from fedscale.strategy import fed_buff
from fedscale_simulations.census import Census
from fedscale_simulations.engines.desk import keep, readable
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, sites

Make: TypeAlias = Callable[[int], Any]

COUNT = 12


def part(at: int) -> Dataset:
    rng = np.random.default_rng(at)
    return from_arrays(rng.normal(size=(20, 4)), np.arange(20) % 3)


class Torn(torch.utils.data.Dataset[Any]):
    """A torch dataset whose rows cannot be read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, at: int) -> Any:
        raise RuntimeError("a torn page")


class Shelf(Mapping[str, Any]):
    """Clients by name, looked up when asked for, of which one cannot be had."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def __getitem__(self, name: str) -> Any:
        if name == self._missing:
            raise OSError("no such tape")
        return part(int(name.removeprefix("client-")))

    def __iter__(self) -> Iterator[str]:
        return iter(Numbered(COUNT))

    def __len__(self) -> int:
        return COUNT


def lazily(bad: int, **known: Any) -> Population:
    def make(at: int) -> Dataset:
        if at == bad:
            raise IndexError("no such patient")
        return part(at)

    return Population.lazy(COUNT, make, **known)


def app(*, batches: bool) -> fs.App:
    """One that goes in blocks as a chain of layers, or one for which a client's rows are looked at first."""
    middle: Callable[[], nn.Module] = nn.ReLU if batches else lambda: nn.GroupNorm(2, 8)
    return fs.App(model=lambda: nn.Sequential(nn.Linear(4, 8), middle(), nn.Linear(8, 3)), loss=nn.functional.cross_entropy, metrics=["accuracy"])


@pytest.mark.parametrize("bad", [0, 5])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (lazily, "IndexError: no such patient"),
        (lambda bad: lazily(bad, rows=20), "IndexError: no such patient"),
        (lambda bad: Shelf(f"client-{bad:04}"), "OSError: no such tape"),
        (lambda bad: {f"client-{at:04}": Torn() if at == bad else part(at) for at in range(COUNT)}, "RuntimeError: a torn page"),
    ],
)
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_whichever_clients_data_cannot_be_had_only_it_fails(data: Callable[[int], Mapping[str, Any]], what: str, bad: int, engine: str) -> None:
    for batches in (True, False):
        ended = simulate(app(batches=batches), data(bad), rounds=1, engine=engine, train={"device": "cpu"}, workers=1, evaluate={"every": 0})
        assert ended.status == "completed", ended.record.reason
        (row,) = ended.record.rounds
        (told,) = row.failures.items()
        assert told[0] == next(name for at, name in enumerate(data(bad)) if at == bad)
        assert (what in told[1].what, len(row.answered)) == (True, COUNT - 1), told
        note = ended.record.extra["engine"]
        assert isinstance(note, dict)
        assert note["form"] == engine, note["why"]


@pytest.mark.parametrize("bad", [0, 5])
def test_a_client_without_data_on_a_device_fails_as_any_other(bad: int) -> None:
    devices = {"speed_spread": 0.5}
    ended = simulate(app(batches=True), lazily(bad), rounds=1, devices=devices, engine="sequential", train={"device": "cpu"})
    assert ended.status == "completed", ended.record.reason
    failed = {(name, failure.cause) for row in ended.record.rounds for name, failure in row.failures.items()}
    assert failed == {(f"client-{bad:04}", Cause.DATA)}


def test_where_nobodys_data_can_be_had_the_run_ends_and_says_so() -> None:
    def make(_: int) -> Dataset:
        raise OSError("the archive is closed")

    tried: list[str] = []
    for engine in ("sequential", "vectorized"):
        ended = simulate(app(batches=False), Population.lazy(3, make), rounds=1, engine=engine)
        assert ended.status == "failed"
        tried.append(ended.record.reason)
    assert all(reason.startswith("no node could make the first model") and "the archive is closed" in reason for reason in tried)


def test_only_a_few_are_looked_at_where_any_will_do() -> None:
    asked: list[int] = []

    def make(at: int) -> Dataset:
        asked.append(at)
        raise OSError("gone")

    everybody = Population.lazy(100_000, make)
    assert keep(everybody) == keep({}) > 1000
    assert sorted(set(asked)) == list(range(8))
    assert [len(found) for found in readable(lazily(1)) if isinstance(found, Dataset)] == [20] * 7
    assert keep({"a": object(), "b": part(0)}) == keep({})


def test_a_census_counts_what_it_can() -> None:
    assert Census(Shelf("client-0003")).largest is None
    assert Census(Shelf("nobody")).largest == 20
    assert [Census(Shelf("client-0003")).rows(name) for name in ("client-0003", "client-0004")] == [1, 20]


def test_what_people_have_at_hand_is_no_dataset_and_they_are_told_how_to_make_one() -> None:
    class DataFrame(dict[str, Any]):
        columns = ("a",)

    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 4), torch.zeros(4)))
    hints = {"from_frame(frame, label": DataFrame(), "the loader's own dataset": rows, "from_arrays(x, y)": (1, 2), "give a fedscale": []}
    for hint, given in hints.items():
        ended = simulate(app(batches=True), {"a": given}, rounds=1)
        assert hint in ended.record.rounds[-1].failures["a"].hint
    frame = type("Frame", (), {"columns": ("a",)})()
    with pytest.raises(DataError, match=r"fs\.data\.from_frame\(data, label=\"y\"\)\.partition"):
        simulate(app(batches=True), frame)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"clients": {"wait_for": 5}}, "clients.wait_for: 5 clients are needed and there are only 4; lower it to 4, or simulate more clients"),
        ({"clients": {"min_per_round": 9}}, "clients.min_per_round: 9 clients are needed and there are only 4; lower it to 4, or simulate"),
        ({"clients": {"select": 50}}, "clients.select: 50 clients are needed and there are only 4; lower it to 4, or simulate more clients"),
        ({"evaluate": {"select": 6}}, "evaluate.select: 6 clients are needed and there are only 4; lower it to 4, or simulate more clients"),
        ({"strategy": fed_buff(buffer=7)}, "strategy.buffer: 7 clients are needed and there are only 4; lower it to 4, or simulate more clients"),
    ],
)
def test_a_plan_for_more_clients_than_there_are_is_refused_before_anybody_trains(tables: dict[str, Any], told: str) -> None:
    learner = Mean()
    with pytest.raises(PlanError) as caught:
        simulate(learner, sites(), **tables)
    assert str(caught.value).startswith(told)
    assert learner.calls == []


def test_as_many_clients_as_there_are_may_be_asked_and_an_evaluation_that_never_is_may_ask_more() -> None:
    everybody = {"min_per_round": 4, "wait_for": 4, "select": 4}
    assert simulate(Mean(), sites(), rounds=1, clients=everybody, evaluate={"every": 0, "select": 9}).status == "completed"
