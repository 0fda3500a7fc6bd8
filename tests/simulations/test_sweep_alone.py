"""Sweeps whose process is killed, or that meet another one in their folder: nothing is tried twice at a time."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import fedscale

pytestmark = pytest.mark.requires("optuna")

APP = """
import os, time
from pathlib import Path
import numpy as np
from fedscale.data import Population, from_arrays
from fedscale.learner import Phase, Result

HERE = Path(__file__).parent

class Slow:
    def run(self, work):
        if work.arrays is None:
            return Result({"w": np.zeros(2, np.float32)}, 0)
        if work.phase is Phase.TRAIN and (HERE / "slow").exists():
            (HERE / f"at-work-{os.getpid()}").write_text(str(work.training.epochs))
            time.sleep(600)
        return Result({"w": work.arrays["w"]} if work.phase is Phase.TRAIN else None, 10, {"loss": np.array([float(work.training.epochs)])})

app = Slow()

def population(clients, seed):
    return Population.lazy(clients or 2, lambda at: from_arrays(np.zeros((10, 1)), np.arange(10) % 2), rows=10)
"""
JOB = '[job]\nname = "slow"\n[strategy]\nrounds = 1\n[sweep.space]\n"train.epochs" = { low = 1, high = 9 }\n'


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is looked at
        return False


def test_a_folder_in_which_a_sweep_is_at_work_is_left_alone(job: Path) -> None:
    assert fedscale("sweep", job, "--trials", 1, "--workers", 1).code == 0
    journal = Path("runs/slow-sweep/sweep.journal").read_bytes()
    with Path("runs/slow-sweep/lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = fedscale("sweep", job, "--trials", 2, "--workers", 1, "--json")
    assert (done.code, done.error["type"], done.error["where"]) == (6, "Conflict", "runs/slow-sweep")
    assert Path("runs/slow-sweep/sweep.journal").read_bytes()[: len(journal)] == journal
    assert len(fedscale("sweep", job, "--trials", 2, "--workers", 1, "--json").data["trials"]) == 2


def test_a_sweep_that_was_killed_leaves_nobody_at_work_and_goes_on(job: Path) -> None:
    (job.parent / "slow").touch()
    words = [sys.executable, "-m", "fedscale", "sweep", str(job), "--trials", "1", "--workers", "1"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=job.parent) as sweep:
        until(lambda: [path for path in job.parent.glob("at-work-*") if path.read_text()])
        sweep.kill()
    begun = {int(path.name.rpartition("-")[2]): path.read_text() for path in job.parent.glob("at-work-*")}
    until(lambda: not any(map(lives, begun)))
    (job.parent / "slow").unlink()
    data = fedscale("sweep", job, "--trials", 1, "--workers", 1, "--json").data
    assert [(trial["number"], str(trial["settings"]["train.epochs"])) for trial in data["trials"]] == [(0, value) for value in begun.values()]
    assert [path.name for path in Path(data["folder"], "trials").iterdir()] == ["0000"]
