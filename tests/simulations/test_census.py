from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fedscale as fs
from fedscale.data import Dataset, Population, from_arrays
from fedscale.names import Numbered
from fedscale.plan import Plan
from fedscale_simulations.census import Census, weight_cap
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, sites


def part(rows: int) -> Dataset:
    return from_arrays(np.zeros((rows, 1)), np.zeros(rows))


APP = fs.App(model=lambda: None, loss=lambda outputs, targets: None)
HELD = Population.of({"zoe": part(3), "ada": part(17)})


def test_held_clients_are_listed_in_their_order_and_counted() -> None:
    census = Census(HELD)
    assert (census.listed, list(census.names), census.facts) == (("zoe", "ada"), ["ada", "zoe"], {"clients": 2})
    assert (census.rows("zoe"), census.rows("ada"), census.largest) == (3, 17, 17)


def test_numbered_clients_are_counted_only() -> None:
    census = Census(Population.lazy(100_000, lambda _: part(2), rows=np.arange(100_000) + 1))
    assert (census.listed, len(census.names), census.largest) == ((), 100_000, 100_000)
    assert census.rows("client-00041") == 42


def test_rows_that_nobody_told_are_looked_up() -> None:
    made: list[int] = []

    def make(at: int) -> Dataset:
        made.append(at)
        return part(at + 4)

    census = Census(Population.lazy(["b", "a"], make))
    assert (census.largest, census.listed, made) == (None, ("b", "a"), [])
    assert (census.rows("a"), made) == (5, [1])


def test_any_mapping_has_clients() -> None:
    assert (Census({"a": [1, 2, 3], "b": [1]}).largest, Census({"a": [1, 2, 3]}).rows("a")) == (3, 3)
    assert (Census(sites()).largest, Census(sites()).rows("site-2")) == (None, 1)


@pytest.mark.parametrize(("rows", "cap"), [(1, 1), (2, 2), (3, 4), (50, 64), (64, 64), (65, 128), (20_000, 32_768)])
def test_the_cap_is_the_power_of_two_that_fits_the_largest_client(rows: int, cap: int) -> None:
    assert weight_cap(APP, {"a": [0] * rows, "b": [0]}) == {"weight_cap": cap}


@pytest.mark.parametrize(
    ("app", "data"),
    [
        (Mean(), {"a": [1]}),
        (fs.App(model=lambda: None, loss=lambda o, t: None, prepare=lambda data: data), {"a": [1]}),
        (APP, Population.lazy(Numbered(3)[:], lambda _: part(2))),
        (APP, sites()),
        (APP, {}),
        (APP, "no data"),
    ],
)
def test_the_plans_own_cap_holds_where_nobody_knows(app: Any, data: Any) -> None:
    assert weight_cap(app, data) is None


@pytest.mark.requires("torch")
def test_a_simulation_of_small_clients_uses_the_whole_precision() -> None:
    torch = pytest.importorskip("torch")
    app = fs.App(model=lambda: torch.nn.Linear(1, 1), loss=torch.nn.functional.mse_loss)
    held = Population.of({name: from_arrays(np.ones((20, 1)), np.full(20, 0.5)) for name in "abc"})
    plan = Plan.from_toml(simulate(app, held, rounds=1).record.plan_toml)
    assert plan.aggregate.weight_cap == 32
    given = Plan.from_toml(simulate(app, held, rounds=1, aggregate={"bound": 4}).record.plan_toml)
    assert (given.aggregate.bound, given.aggregate.weight_cap) == (4, 16384)
