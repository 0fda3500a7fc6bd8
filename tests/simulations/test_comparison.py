"""Alone, federated, pooled: the same rows are held out for all, and nobody trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.data import Dataset, from_arrays, from_csv
from fedscale.errors import DataError
from fedscale.learner import Phase, Result, Work
from fedscale.metrics import score_histogram
from fedscale.plan import Plan
from fedscale_simulations.comparison import Comparison, auc, compare, write_csv

PLAN = Plan.from_toml('[job]\nname = "p"\nseed = 3\n[strategy]\nrounds = 2\n[clients]\nmin_per_round = 2\nwait_for = 2\n[evaluate]\nholdout = 0.25')


class Centroid:
    """Learns the direction from the mean of one class to that of the other, and remembers every row it was shown."""

    def __init__(self) -> None:
        self.trained: list[frozenset[tuple[float, ...]]] = []
        self.evaluated: list[Dataset] = []

    def run(self, work: Work) -> Result:
        rows: Dataset = work.data
        if work.arrays is None:
            return Result({"w": np.zeros(2, np.float32)}, 0)
        if work.phase is Phase.EVALUATE:
            self.evaluated.append(rows)
            sums = score_histogram(rows.x @ work.arrays["w"], rows.y)
            return Result(None, len(rows), {"loss": np.zeros(1), "auc": sums})
        self.trained.append(frozenset(map(tuple, rows.x.tolist())))
        direction = rows.x[rows.y == 1].mean(0) - rows.x[rows.y == 0].mean(0)
        return Result({"w": direction.astype(np.float32)}, len(rows), {"loss": np.zeros(1)})


def site(shift: float, seed: int) -> Dataset:
    """Two classes that differ along an axis of the site's own."""
    random = np.random.Generator(np.random.Philox(seed))
    y = np.arange(60) % 2
    return from_arrays(random.normal(0, 1, (60, 2)) + y[:, None] * np.array([1.0, shift]), y, columns=("a", "b"))


SITES = {"north": site(-2.0, 1), "south": site(2.0, 2)}
MODEL = {"w": np.array([1.0, 0.0], np.float32)}


@pytest.fixture
def learner() -> Centroid:
    return Centroid()


def held_out() -> set[tuple[float, ...]]:
    return {tuple(row) for rows in SITES.values() for row in rows.split(0.25, 3)[1].x.tolist()}


def test_all_models_meet_the_same_rows_that_none_has_seen(learner: Centroid) -> None:
    compare(learner, PLAN, SITES, MODEL)
    assert {rows.digest for rows in learner.evaluated} == {learner.evaluated[0].digest}
    assert {tuple(row) for row in learner.evaluated[0].x.tolist()} == held_out()
    assert all(seen.isdisjoint(held_out()) for seen in learner.trained)


def test_each_trains_on_its_own_and_pooled_on_all(learner: Centroid) -> None:
    compared = compare(learner, PLAN, SITES, MODEL)
    north, south = (frozenset(map(tuple, rows.split(0.25, 3)[0].x.tolist())) for rows in SITES.values())
    assert learner.trained == [north, north, south, south, north | south, north | south]
    assert compared.examples == {"north": 45, "south": 45}


def test_the_areas_are_those_of_the_models(learner: Centroid) -> None:
    compared = compare(learner, PLAN, SITES, MODEL)
    rows = Dataset.concat([part.split(0.25, 3)[1] for part in SITES.values()])
    assert compared.federated == auc(learner, PLAN, MODEL, rows)
    assert compared.mean_alone == pytest.approx(sum(compared.alone.values()) / 2)
    assert compared.federated > compared.mean_alone
    assert list(compared.alone) == ["north", "south"]


def test_rows_of_one_class_have_no_area(learner: Centroid) -> None:
    with pytest.raises(DataError, match="all of one class"):
        auc(learner, PLAN, MODEL, from_arrays(np.ones((4, 2)), np.ones(4)))


def test_rows_for_the_report() -> None:
    rows: Any = Comparison({"north": 0.7}, 0.9, 0.95, {"north": 45}).rows()
    assert rows == [
        {"kind": "alone", "site": "north", "examples": 45, "auc": 0.7},
        {"kind": "federated", "examples": 45, "auc": 0.9},
        {"kind": "pooled", "examples": 45, "auc": 0.95},
    ]


def test_a_table_reads_back_bit_for_bit(tmp_path: Path) -> None:
    rows = from_arrays(np.array([[0.1, 1e-30], [3.4e38, -0.0], [1 / 3, 7.0]]), [0, 1, 0], columns=("a", "b c"))
    write_csv(tmp_path / "deep/rows.csv", rows, "y")
    again = from_csv(tmp_path / "deep/rows.csv", "y")
    assert again.digest == rows.digest
    assert again.columns == ("a", "b c")
