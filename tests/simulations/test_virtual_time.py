"""Deadlines, over-selection, stragglers and drop-outs in virtual time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedscale as fs
from fedscale.data import Dataset, Population, from_arrays
from fedscale.errors import ConfigError, NotFound
from fedscale.learner import Phase, Result, Work
from fedscale.record import RoundRecord
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, sites

ROWS = from_arrays(np.zeros((20, 1)), np.arange(20) % 2)


class Nudge:
    """Moves a model of ten coordinates a little; notes for whom it did what."""

    def __init__(self) -> None:
        self.trained = 0

    def run(self, work: Work) -> Result:
        if work.arrays is None:
            return Result({"w": np.zeros(10, np.float32)}, 0)
        loss = np.array([float(np.square(1 - work.arrays["w"]).mean()) * 20])
        if work.phase is Phase.EVALUATE:
            return Result(None, 20, dict.fromkeys(work.metrics, loss))
        self.trained += 1
        return Result({"w": work.arrays["w"] + np.float32(0.1)}, 20, {"loss": loss})


def crowd(count: int) -> Population:
    return Population.lazy(count, lambda _: ROWS, rows=20)


def trace(folder: Path, *lines: str) -> dict[str, str]:
    path = folder / "trace.csv"
    path.write_text("speed,up,down,begins,hours,dropout\n" + "\n".join(lines) + "\n")
    return {"file": str(path)}


def play(devices: Any, learner: Any = None, count: int = 4, **options: Any) -> Simulation:
    usual: dict[str, Any] = {"rounds": 1, "evaluate": {"every": 0, "holdout": 0}}
    return simulate(learner or Nudge(), crowd(count), devices=devices, **usual | options)


def first(run: Simulation) -> RoundRecord:
    return run.record.rounds[0]


# A client's second each: 40 bytes down, 20 examples of work for the fast ones, 80 bytes up.
FAST, SLOW, STUCK = "20,80,40,0,24,0", "2,80,40,0,24,0", "0.01,80,40,0,24,0"


def test_a_round_takes_what_its_slowest_device_takes(tmp_path: Path) -> None:
    run = play(trace(tmp_path, FAST, FAST, SLOW, FAST))
    assert first(run).seconds == pytest.approx(1 + 10 + 1, abs=0.01)
    assert first(run).answered == ("client-0000", "client-0001", "client-0002", "client-0003")
    twice = play(trace(tmp_path, FAST, FAST, SLOW, FAST), train={"epochs": 2})
    assert first(twice).seconds == pytest.approx(1 + 20 + 1, abs=0.01)
    few = play(trace(tmp_path, FAST, FAST, SLOW, FAST), train={"epochs": 9, "max_steps": 1, "batch_size": 4})
    assert first(few).seconds == pytest.approx(1 + 2 + 1, abs=0.01)


def test_over_selection_waits_for_the_fastest_and_trains_nobody_in_vain(tmp_path: Path) -> None:
    learner = Nudge()
    run = play(trace(tmp_path, FAST, STUCK, SLOW, FAST), learner, clients={"select": 2, "over_select": 2.0})
    assert first(run).answered == ("client-0000", "client-0003")
    assert first(run).seconds == pytest.approx(3, abs=0.01)
    assert learner.trained == 2
    assert first(run).bytes_down == 4 * 40


def test_a_deadline_ends_the_wait_for_stragglers(tmp_path: Path) -> None:
    learner = Nudge()
    run = play(trace(tmp_path, FAST, STUCK, SLOW, FAST), learner, clients={"deadline": "15s"})
    assert first(run).answered == ("client-0000", "client-0002", "client-0003")
    assert {name: str(failure.cause) for name, failure in first(run).failures.items()} == {"client-0001": "timeout"}
    assert first(run).seconds == pytest.approx(15, abs=0.01)
    assert learner.trained == 3


def test_too_few_before_the_deadline_fail_the_run(tmp_path: Path) -> None:
    run = play(trace(tmp_path, FAST, STUCK, STUCK, STUCK), clients={"deadline": "15s", "min_per_round": 2})
    assert run.status == "failed"
    assert "1 of 4 nodes answered, 2 are needed" in run.record.reason
    assert run.record.seconds == pytest.approx(15 + 3, abs=4)


def test_devices_drop_out(tmp_path: Path) -> None:
    run = play({"dropout": 0.4}, count=300, rounds=3, clients={"rejoin": "1s"})
    lost = [len(row.failures) for row in run.record.rounds]
    assert [str(cause) for cause in {failure.cause for row in run.record.rounds for failure in row.failures.values()}] == ["lost"]
    assert np.mean(lost) == pytest.approx(120, rel=0.2)
    assert len(set(lost)) > 1
    assert {name for row in run.record.rounds for name in row.answered} > set(first(run).answered)


def test_who_leaves_for_the_day_is_lost_then(tmp_path: Path) -> None:
    devices = trace(tmp_path, FAST, "0.1,80,40,0,0.05,0") | {"start": 0.0}
    run = play(devices, count=2, clients={"rejoin": "5s"})
    assert first(run).answered == ("client-0000",)
    assert str(first(run).failures["client-0001"].cause) == "lost"
    assert run.record.seconds == pytest.approx(180 + 5, abs=0.01)


def test_a_round_waits_until_enough_devices_are_there(tmp_path: Path) -> None:
    devices = trace(tmp_path, "20,80,40,1,1,0", "20,80,40,1.5,1,0") | {"start": 0.0}
    late = play(devices, count=2, clients={"deadline": "3h", "min_per_round": 2})
    assert late.record.seconds == pytest.approx(1.5 * 3600 + 1 + 3, abs=1)
    never = play(devices, count=2, clients={"deadline": "10m", "min_per_round": 2})
    assert "fewer than 2 nodes were there within 600 s" in never.record.reason


def test_evaluation_costs_a_third_of_training(tmp_path: Path) -> None:
    run = play(trace(tmp_path, "20,1e9,1e9,0,24,0"), evaluate={"every": 1, "holdout": 0})
    assert [row.seconds for row in run.record.rounds] == [pytest.approx(1, abs=0.01), pytest.approx(1 / 3, abs=0.01)]


def test_seconds_are_the_machines_without_devices() -> None:
    began = time.monotonic()
    run = play(None)
    assert 0 < run.record.seconds <= time.monotonic() - began
    assert "devices" not in run.record.extra


def test_devices_stand_in_the_record() -> None:
    run = play({"speed": 7.0})
    devices = run.record.extra["devices"]
    assert isinstance(devices, dict)
    assert devices["speed"] == 7.0
    assert run.record.extra["population"] == {"clients": 4}


def test_the_same_seed_gives_the_same_day() -> None:
    options: dict[str, Any] = {"count": 60, "rounds": 4, "clients": {"select": 10, "over_select": 1.5}, "evaluate": {"every": 2}}
    devices = {"hours": 10, "dropout": 0.1, "speed_spread": 2.0}
    one, again, other = (play(devices, seed=seed, **options) for seed in (5, 5, 6))
    assert one.record.rounds == again.record.rounds
    assert one.digest == again.digest
    assert one.record.rounds != other.record.rounds


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_day_that_is_interrupted_goes_on_as_it_would_have(tmp_path: Path, phase: str) -> None:
    options: dict[str, Any] = {
        "rounds": 6, "clients": {"select": 8, "over_select": 1.5, "deadline": "47.3s"}, "evaluate": {"every": 1, "select": 3},
        "devices": {"hours": 10, "dropout": 0.1, "speed": 3.0},
    }  # fmt: skip

    def stop(progress: Any) -> None:
        if (progress.number, progress.phase, progress.done) == (4, phase, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(Nudge(), crowd(200), folder=tmp_path, on_progress=stop, **options)
    resumed, whole = simulate(Nudge(), crowd(200), resume=tmp_path, **options), simulate(Nudge(), crowd(200), **options)
    assert resumed.record.rounds == whole.record.rounds
    assert (resumed.digest, resumed.record.seconds) == (whole.digest, whole.record.seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"devices": {"speed": 2.0}}, "another devices"), ({"count": 5}, "another population"), ({"devices": None}, "another devices")],
)
def test_other_devices_or_clients_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"devices": {"speed": 1.0}, "rounds": 1}
    play(**options, folder=tmp_path)
    with pytest.raises(ConfigError, match=message):
        play(**options | change, resume=tmp_path)


def test_time_to_a_target_is_the_end_of_the_phase_that_reached_it(tmp_path: Path) -> None:
    run = play(trace(tmp_path, FAST, SLOW), count=2, rounds=5, evaluate={"every": 1, "holdout": 0})
    losses = [row.metrics["loss"] for row in run.record.rounds if row.phase == "evaluate"]
    third = sum(row.seconds for row in run.record.rounds[:6])
    assert run.reached("evaluate.loss", losses[2]) == pytest.approx(third)
    assert run.reached("evaluate.loss", losses[0]) == pytest.approx(sum(row.seconds for row in run.record.rounds[:2]))
    assert run.reached("evaluate.loss", losses[-1] / 2) is None
    with pytest.raises(NotFound, match="no metric 'evaluate.los'; did you mean 'evaluate.loss'"):
        run.reached("evaluate.los", 0.1)


def test_a_hundred_thousand_devices_are_no_more_work_than_their_cohort() -> None:
    learner, made = Nudge(), list[int]()

    def make(at: int) -> Dataset:
        made.append(at)
        return ROWS

    data = Population.lazy(100_000, make, rows=20)
    run = simulate(learner, data, rounds=5, clients={"select": 20}, evaluate={"every": 0}, devices={"hours": 8.0})
    assert "5 rounds with 100,000 clients" in run.summary()
    assert learner.trained == 100
    assert len(made) <= 100 + 2
    assert run.record.nodes == ()
    assert all(name in data for row in run.record.rounds for name in row.answered)


def test_explicit_clients_have_devices_too() -> None:
    run = simulate(Mean(), sites(4), rounds=2, devices={"speed": 1.0, "speed_spread": 0.0, "net_spread": 0.0})
    assert run.record.nodes == ("site-0", "site-1", "site-2", "site-3")
    assert run.record.rounds[0].seconds == pytest.approx(1, abs=0.3)
    assert run.digest == simulate(Mean(), sites(4), rounds=2).digest


def test_a_job_is_a_strategy_with_devices(tmp_path: Path) -> None:
    still = play(None, count=30, rounds=3, strategy=fs.fed_adam())
    moved = play({"speed_spread": 2.0}, count=30, rounds=3, strategy=fs.fed_adam())
    assert moved.digest == still.digest
    assert moved.record.seconds > still.record.seconds
