"""Asynchronous rounds: who is at work, what an old answer counts, and that a run goes on after a kill."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedscale as fs
from fedscale.data import Population, from_arrays
from fedscale.errors import PlanError, RunFailed
from fedscale.learner import Phase, Result, Work
from fedscale_simulations import checkpoint
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, sites

ROWS = from_arrays(np.zeros((20, 1)), np.arange(20) % 2)


class Steps:
    """Adds one to the model it is given, or for each round of a table; notes on which version who worked."""

    def __init__(self, faults: int = 0) -> None:
        self.worked: list[tuple[int, float]] = []
        self.faults = faults

    def run(self, work: Work) -> Result:
        if work.arrays is None:
            return Result({"w": np.zeros(2, np.float32)}, 0)
        loss = np.array([20.0 * float(work.arrays["w"][0])])
        if work.phase is Phase.EVALUATE:
            return Result(None, 20, dict.fromkeys(work.metrics, loss))
        self.worked.append((work.number, float(work.arrays["w"][0])))
        if self.faults and len(self.worked) % self.faults == 0:
            raise ValueError("odd")
        return Result({"w": work.arrays["w"] + np.float32(1)}, 20, {"loss": loss})


def trace(folder: Path, *speeds: float, rest: str = "1e9,1e9,0,24,0") -> dict[str, Any]:
    path = folder / "trace.csv"
    path.write_text("speed,up,down,begins,hours,dropout\n" + "".join(f"{speed},{rest}\n" for speed in speeds))
    return {"file": str(path), "observer": True}


def play(devices: Any, count: int, *, learner: Any = None, buffer: int = 2, at_work: Any = 2, **options: Any) -> Simulation:
    usual: dict[str, Any] = {"rounds": 4, "evaluate": {"every": 0, "holdout": 0}, "strategy": fs.fed_buff(buffer=buffer)}
    data = Population.lazy(count, lambda _: ROWS, rows=20)
    return simulate(learner or Steps(), data, clients={"select": at_work}, devices=devices, **usual | options)


def test_one_at_work_and_a_buffer_of_one_is_one_client_after_the_other(tmp_path: Path) -> None:
    learner = Steps()
    run = play(trace(tmp_path, 20.0), 5, learner=learner, buffer=1, at_work=1)
    assert run.model["w"].tolist() == pytest.approx([4, 4], abs=1e-5)
    assert [number for number, _ in learner.worked] == [1, 2, 3, 4]
    assert [row.seconds for row in run.record.rounds] == pytest.approx([1] * 4, abs=0.01)


def test_an_old_answer_counts_less(tmp_path: Path) -> None:
    """A device of 1 s and one of 3.5 s, a buffer of one: the slow one's first answer is three rounds old."""
    learner = Steps()
    run = play(trace(tmp_path, 20.0, 20 / 3.5), 2, learner=learner, buffer=1, rounds=4)
    assert sorted(number for number, _ in learner.worked) == [1, 1, 2, 3]
    assert [row.seconds for row in run.record.rounds] == pytest.approx([1, 1, 1, 0.5], abs=0.01)
    assert run.record.rounds[3].answered == ("client-0001",)
    assert run.model["w"][0] == pytest.approx(3 + (1 + 3) ** -0.5, abs=1e-5)
    ignored = play(trace(tmp_path, 20.0, 20 / 3.5), 2, rounds=4, strategy=fs.fed_buff(buffer=1, staleness=0.0))
    assert ignored.model["w"][0] == pytest.approx(4, abs=1e-5)


def test_nobody_waits_for_the_slowest(tmp_path: Path) -> None:
    devices = trace(tmp_path, *[20.0] * 9, 0.01)
    buffered = play(devices, 10, buffer=3, at_work=6, rounds=6)
    together = play(devices, 10, strategy=fs.fed_avg(), rounds=2, at_work="all")
    assert buffered.record.seconds == pytest.approx(6 * 3 / 5, abs=2)
    assert together.status == "failed" or together.record.seconds > 600


def test_so_many_are_at_work_on_the_newest_model_there_is(tmp_path: Path) -> None:
    learner = Steps()
    run = play({"speed_spread": 1.0, "observer": True}, 300, learner=learner, buffer=5, at_work=25, rounds=40)
    ages = Counter[int]()
    for at, (number, value) in enumerate(learner.worked):
        ages[1 + at // 5 - number] += 1
        assert value <= number - 1
    assert min(ages) == 0
    assert np.average(list(ages), weights=list(ages.values())) == pytest.approx(25 / 5 - 1, abs=1.5)
    assert len({node for row in run.record.rounds for node in row.answered}) > 60
    assert all(len(row.answered) == 5 for row in run.record.rounds)


def test_weights_count_as_in_any_other_round() -> None:
    by_size = simulate(Mean(), sites(4), rounds=1, strategy=fs.fed_buff(buffer=4), evaluate={"every": 0})
    assert by_size.digest == simulate(Mean(), sites(4), rounds=1, evaluate={"every": 0}).digest
    alike = simulate(Mean(), sites(4), rounds=1, strategy=fs.fed_buff(buffer=4, weighting="equal"), evaluate={"every": 0})
    assert alike.model["w"][0] == pytest.approx(np.mean([0, 0.125, 0.25, 0.375]), abs=1e-5)


def test_evaluation_takes_no_time_and_sees_the_last_model(tmp_path: Path) -> None:
    run = play(trace(tmp_path, 20.0, 10.0), 2, buffer=1, rounds=4, evaluate={"every": 2, "holdout": 0})
    evaluated = [row for row in run.record.rounds if row.phase == "evaluate"]
    assert [(row.number, row.seconds, len(row.answered)) for row in evaluated] == [(2, 0, 2), (4, 0, 2)]
    assert evaluated[-1].metrics["loss"] == pytest.approx(float(run.model["w"][0]), abs=1e-4)
    assert run.reached("evaluate.loss", 100.0) == pytest.approx(2, abs=1)


def test_who_drops_out_or_fails_is_named_and_replaced(tmp_path: Path) -> None:
    lost = play({"dropout": 0.3, "observer": True}, 50, buffer=4, at_work=10, rounds=10)
    causes = Counter(str(failure.cause) for row in lost.record.rounds for failure in row.failures.values())
    assert set(causes) == {"lost"}
    assert causes["lost"] == pytest.approx(40 * 0.3 / 0.7, abs=12)
    failing = play(None, 50, learner=Steps(faults=3), buffer=4, at_work=10, rounds=10)
    assert failing.status == "completed"
    assert all(len(row.answered) == 4 for row in failing.record.rounds)
    assert {str(failure.cause) for row in failing.record.rounds for failure in row.failures.values()} == {"code"}


def test_a_buffer_that_nobody_fills_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="not filled within a day"):
        play(trace(tmp_path, 1e-4), 3)
    with pytest.raises(PlanError, match=r"^strategy\.buffer: 4 clients are needed and there are only 3"):
        play(trace(tmp_path, 1.0), 3, buffer=4)


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_an_interrupted_stream_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    monkeypatch.setattr(checkpoint, "CHEAP", math.inf)  # a slow disk must not cost the last round
    devices = {"dropout": 0.1, "hours": 9.0, "speed_spread": 2.0, "observer": True}
    options: dict[str, Any] = {"buffer": 4, "at_work": 12, "rounds": 12, "evaluate": {"every": 3, "select": 5}, "strategy": fs.fed_buff(buffer=4)}

    def stop(progress: Any) -> None:
        if (progress.number, progress.phase, progress.done) == (6, phase, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(devices, 90, folder=tmp_path, on_progress=stop, **options)
    learner = Steps()
    resumed, whole = play(devices, 90, resume=tmp_path, learner=learner, **options), play(devices, 90, **options)
    assert resumed.digest == whole.digest
    assert resumed.record.rounds == whole.record.rounds
    assert len(learner.worked) <= 8 * 4 + 4


def test_progress_tells_the_buffer(tmp_path: Path) -> None:
    seen: list[tuple[int, str, int, int]] = []
    play(None, 20, buffer=3, at_work=5, rounds=2, on_progress=lambda p: seen.append((p.number, p.phase, p.done, p.asked)))
    train = [entry for entry in seen if entry[1] == "train"]
    assert set(train) >= {(1, "train", 1, 3), (1, "train", 3, 3), (2, "train", 1, 3)}
    assert all(done <= asked for _, _, done, asked in seen)


def test_the_arguments_are_checked() -> None:
    assert (fs.fed_buff().buffer, fs.fed_buff().staleness, fs.fed_avg().buffer) == (10, 0.5, 0)
    faults: list[dict[str, Any]] = [{"buffer": 0}, {"staleness": -1.0}, {"size": 3}]
    for wrong in faults:
        with pytest.raises(PlanError):
            fs.fed_buff(**wrong)
