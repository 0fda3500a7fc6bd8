"""Sweeps: what the table says, what a search remembers, and that real workers find the bottom of a bowl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import pytest

from fedscale.errors import ConfigError, PlanError, RunFailed
from fedscale.plan import Plan
from fedscale_simulations.sweep.crew import Crew
from fedscale_simulations.sweep.space import Search, as_overrides
from tests.command import fedscale

study = pytest.importorskip("fedscale_simulations.sweep.study", reason="pip install 'fedscale-fl[sweep]'")

pytestmark = pytest.mark.requires("optuna")

APP = """
import os
import numpy as np
from fedscale.data import Population, from_arrays
from fedscale.learner import Phase, Result

class Bowl:
    def run(self, work):
        print("the app prints")
        if work.arrays is None:
            return Result({"w": np.zeros(2, np.float32)}, 0)
        if work.training.epochs == 6:
            os._exit(3)
        if work.training.epochs == 7:
            raise ValueError("seven")
        depth = np.array([10.0 * abs(np.log10(work.training.optimizer.lr / 0.3)) + abs(work.training.epochs - 4)])
        if work.phase is Phase.EVALUATE:
            return Result(None, 10, dict.fromkeys(work.metrics, depth))
        return Result({"w": work.arrays["w"] + np.float32(0.1)}, 10, {"loss": depth})

app = Bowl()

def population(clients, seed):
    return Population.lazy(clients or 2, lambda at: from_arrays(np.zeros((10, 1)), np.arange(10) % 2), rows=10)
"""
SPACE = '"train.optimizer.lr" = { low = 0.01, high = 1.0, log = true }\n"train.epochs" = { low = 1, high = 4 }\n'


def job_of(folder: Path, space: str = SPACE, sweep: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(APP)
    (folder / "job.toml").write_text(f'[job]\nname = "bowl"\n[strategy]\nrounds = 1\n[sweep]\n{sweep}\n[sweep.space]\n{space}')
    return folder / "job.toml"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return job_of(tmp_path / "job")


# -------------------------------------------------------------------------------------------------------------------- the table


def test_a_search_knows_what_it_searches_and_what_is_better(tmp_path: Path) -> None:
    search = Search(job_of(tmp_path / "a"))
    assert (search.monitor, search.direction, list(search.sweep.space)) == ("evaluate.loss", "minimize", ["train.optimizer.lr", "train.epochs"])
    assert search.plan.digest == Plan.from_toml('[job]\nname = "bowl"\n[strategy]\nrounds = 1\n').digest
    accuracy = Search(job_of(tmp_path / "b"), ('evaluate.metrics=["accuracy"]', 'evaluate.monitor="accuracy"'))
    assert (accuracy.monitor, accuracy.direction) == ("evaluate.accuracy", "maximize")
    given = Search(job_of(tmp_path / "c", sweep='monitor = "train.loss"\ndirection = "maximize"'))
    assert (given.monitor, given.direction) == ("train.loss", "maximize")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"train.epoch" = { low = 1, high = 2 }', r"'train.epoch' is not a setting.*did you mean 'epochs'"),
        ('"train.epochs" = { low = 0, high = 2 }', r"train.epochs: input should be greater"),
        ('"train.epochs" = { low = 3, high = 2 }', r"low must be below high"),
        ('"train.optimizer.lr" = { low = 0, high = 2, log = true }', r"above zero on a logarithmic scale"),
        ('"train.epochs" = { low = 1 }', r"give choices = \[...\], or low and high"),
        ('"train.epochs" = { choices = [1], low = 1, high = 2 }', r"give choices"),
        ('"train.epochs" = { choices = [1], log = true }', r"choices go without"),
        ('"train.epochs" = { low = 1, high = 8, log = true, step = 2 }', r"has no steps"),
        ('"train.epochs" = { lo = 1, high = 2 }', r"'sweep.space.train.epochs.lo' is not a setting|give choices"),
        ('"strategy.name" = { choices = ["fedavgg"] }', r"no strategy 'fedavgg'"),
        ("", r"sweep.space: "),
    ],
)
def test_a_fault_in_the_space_has_a_line(tmp_path: Path, line: str, message: str) -> None:
    job = job_of(tmp_path / "job", line)
    with pytest.raises(PlanError, match=message) as caught:
        Search(job)
    assert caught.value.where == (f"{job}:8" if line else f"{job}:7")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ('monitor = "evaluate.auc"', "'auc' is not among the metrics loss"),
        ('monitor = "loss"', "write phase.metric"),
        ('direction = "up"', "sweep.direction"),
        ("trials = 3", "'sweep.trials' is not a setting"),
    ],
)
def test_a_fault_in_the_table_has_a_line(tmp_path: Path, sweep: str, message: str) -> None:
    job = job_of(tmp_path / "job", sweep=sweep)
    with pytest.raises(PlanError, match=message) as caught:
        Search(job)
    assert caught.value.where == f"{job}:6"


def test_a_job_without_a_sweep_says_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[job]\nname = "a"\n')
    with pytest.raises(PlanError, match=r"no \[sweep\] table") as caught:
        Search(tmp_path / "job.toml")
    assert "[sweep.space]" in caught.value.hint


def test_settings_are_overrides_in_toml() -> None:
    settings: dict[str, bool | int | float | str] = {"a.b": 1, "c": 0.5, "d": True, "e": "x y", "f": 1e-07}
    assert as_overrides(settings) == ("a.b=1", "c=0.5", "d=true", 'e="x y"', "f=1e-07")


def test_the_tree_of_a_search_is_the_job_with_the_settings(tmp_path: Path) -> None:
    search = Search(job_of(tmp_path / "job"), ("job.seed=9",))
    assert search.tree({"train.optimizer.lr": 0.5, "strategy.name": "fedadam"}) == {
        "job": {"name": "bowl", "seed": 9}, "strategy": {"rounds": 1, "name": "fedadam"}, "train": {"optimizer": {"lr": 0.5}},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------- the search


class Table:
    """A crew that looks values up in place of simulating, and can be interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interrupt_at: int = -1, odd: Any = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.interrupt_at, self.odd = interrupt_at, odd
        monkeypatch.setattr(study, "Crew", lambda size, log: self)
        self.size = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, request: dict[str, Any]) -> Future[dict[str, Any]]:
        self.requests.append(request)
        if len(self.requests) - 1 == self.interrupt_at:
            raise KeyboardInterrupt
        plan, done = Plan.load(Path(request["job"]), request["overrides"]), Future[dict[str, Any]]()
        loss = abs(math.log10(plan.train.optimizer.lr / 0.3)) + abs(plan.train.epochs - 4)
        done.set_result(self.odd or {"metrics": {"evaluate.loss": loss}, "reason": ""})
        return done


def settings_of(hunt: Any) -> list[dict[str, Any]]:
    return [tried.settings for tried in hunt.tried]


def hunt_of(job: Path, folder: str, trials: int, **options: Any) -> Any:
    hunt = study.Hunt(Search(job), job.parent / folder, **options)
    hunt.run(trials, 1, lambda _: None)
    return hunt


def test_a_search_gets_closer_and_stays_within_its_space(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Table(monkeypatch)
    hunt = hunt_of(job, "out", 40)
    values = [tried.value for tried in hunt.tried]
    assert min(values[20:]) < min(values[:5])
    assert hunt.best.value == min(values)
    assert all(0.01 <= s["train.optimizer.lr"] <= 1 and s["train.epochs"] in (1, 2, 3, 4) for s in settings_of(hunt))
    assert [Path(request["folder"]).name for request in crew.requests] == [f"{at:04d}" for at in range(40)]


def test_a_sweep_goes_on_where_it_was_and_draws_what_it_would_have(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Table(monkeypatch)
    whole = settings_of(hunt_of(job, "whole", 12))
    hunt_of(job, "parts", 5)
    hunt_of(job, "parts", 5)
    assert len(crew.requests) == 12 + 5
    assert settings_of(hunt_of(job, "parts", 12)) == whole


def test_an_interrupted_trial_is_done_again_in_its_place(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Table(monkeypatch, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        hunt_of(job, "out", 8)
    hunt = hunt_of(job, "out", 8)
    assert len(hunt.tried) == 8
    assert [(request["folder"], request["overrides"]) for request in crew.requests][3] == (crew.requests[4]["folder"], crew.requests[4]["overrides"])
    assert not any(tried.reason for tried in hunt.tried)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"metrics": {}, "reason": "the run failed"}, "the run failed"),
        ({"metrics": {}, "reason": ""}, "evaluate.loss was not measured"),
        ({"metrics": {"evaluate.loss": math.nan}, "reason": ""}, "evaluate.loss is not finite"),
    ],
)
def test_trials_that_fail_are_told_and_none_is_best(job: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], reason: str) -> None:
    Table(monkeypatch, odd=answer)
    hunt = hunt_of(job, "out", 3)
    assert [(tried.value, tried.reason) for tried in hunt.tried] == [(None, reason)] * 3
    with pytest.raises(RunFailed, match="no trial of the sweep completed"):
        _ = hunt.best


def test_another_sweep_is_not_mixed_in(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Table(monkeypatch)
    hunt_of(job, "out", 1)
    with pytest.raises(ConfigError, match="holds another sweep"):
        hunt_of(job, "out", 1, clients=5)
    job.write_text(job.read_text().replace("high = 4", "high = 5"))
    with pytest.raises(ConfigError, match="holds another sweep"):
        hunt_of(job, "out", 1)


def test_a_folder_that_cannot_be_made(job: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        study.Hunt(Search(job), job / "below")


# ----------------------------------------------------------------------------------------------------------------- real workers


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with Crew(1, tmp_path / "log") as made:
        yield made


def test_workers_find_the_bottom_of_a_bowl(job: Path) -> None:
    done = fedscale("sweep", job, "--trials", 8, "--workers", 2, "--clients", 3)
    assert done.code == 0, done.err
    assert "\N{BLACK STAR}" in done.out
    assert len([line for line in done.err.splitlines() if line.startswith("trial ")]) == 8
    best = Plan.load(job.with_suffix(".best.toml"))
    again = fedscale("sweep", job, "--trials", 8, "--clients", 3, "--json")
    data = again.data
    assert (again.err, len(data["trials"]), data["monitor"]) == ("", 8, "evaluate.loss")
    assert data["best"]["value"] == min(trial["value"] for trial in data["trials"])
    assert (best.train.optimizer.lr, best.train.epochs) == tuple(data["best"]["settings"].values())
    summary = json.loads((Path(data["folder"]) / "trials" / f"{data['best']['number']:04d}" / "summary.json").read_text())
    assert summary["evaluate.loss"] == data["best"]["value"]
    assert "the app prints" in (Path(data["folder"]) / "workers.log").read_text()


def test_a_worker_that_dies_fails_its_trial_alone(job: Path, crew: Crew) -> None:
    def ask(epochs: int) -> dict[str, Any]:
        folder = str(job.parent / f"trial-{epochs}")
        return crew.submit({"job": str(job), "clients": 2, "overrides": [f"train.epochs={epochs}"], "folder": folder}).result()

    assert ask(4)["metrics"]["evaluate.loss"] > 0
    assert "the worker died, exit code 3" in ask(6)["reason"]
    assert "ValueError: seven" in ask(7)["reason"]
    assert ask(4) == ask(4)
    assert "'train.epochs'" in ask(0)["reason"] or "train.epochs" in ask(0)["reason"]
