"""A simulation that is killed, whenever that may be, goes on to the model it would have had."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.learner import Result, Work
from fedscale.strategy import fed_adam
from fedscale_simulations.checkpoint import FILE, Keeper
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, sites

TIMES = 20
PATIENCE = 60.0


class Slow(Mean):
    """Takes a little while over every client."""

    def run(self, work: Work) -> Result:
        time.sleep(0.001)
        return super().run(work)


def options(folder: Path) -> dict[str, Any]:
    return {
        "rounds": 8, "seed": 5, "strategy": fed_adam(lr=0.05), "clients": {"select": 3, "over_select": 1.4}, "engine": "sequential",
        "devices": {"dropout": 0.1, "hours": 20.0, "speed_spread": 1.5},
    }  # fmt: skip


def forked(folder: Path, *, resume: bool) -> int:
    """Simulate in a process of its own, which shares what is loaded; its number."""
    child = os.fork()
    if child:
        return child
    try:
        where: dict[str, Any] = {"resume": folder} if resume else {"folder": folder}
        simulate(Slow(), sites(6), **where, **options(folder))
    finally:
        os._exit(0)


def wait_for(path: Path, child: int) -> None:
    ends = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < ends, "no checkpoint was written"
        time.sleep(0.001)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_killed_at_a_random_moment_and_resumed_twenty_times_of_twenty(tmp_path: Path) -> None:
    whole = simulate(Slow(), sites(6), **options(tmp_path))
    began = time.monotonic()
    simulate(Slow(), sites(6), folder=tmp_path / "timed", **options(tmp_path))
    lasts = time.monotonic() - began
    rng, killed = np.random.default_rng(), 0
    for at in range(TIMES):
        folder = tmp_path / str(at)
        child = forked(folder, resume=False)
        wait_for(folder / FILE, child)
        time.sleep(lasts * rng.random() ** 3)  # early more often than late: it may have been timed in a slow moment
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        resumed = simulate(Mean(), sites(6), resume=folder, **options(folder))
        assert resumed.digest == whole.digest, at
        assert resumed.record.rounds == whole.record.rounds, at
    assert killed > 0


def test_checkpoints_that_take_long_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = [0.0], list[float]()

    def save(*_: object) -> None:
        saved.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr("fedscale_simulations.checkpoint.save", save)
    monkeypatch.setattr("fedscale_simulations.checkpoint.time.monotonic", lambda: now[0])
    keeper = Keeper(tmp_path)
    run: Any = type("Run", (), {"status": "running"})
    for _ in range(50):
        keeper.keep(run, lambda: None)  # type: ignore[arg-type, return-value]
        now[0] += 1.0
    assert np.diff(saved).tolist() == [21.0, 21.0]
    run.status = "completed"
    keeper.keep(run, lambda: None)  # type: ignore[arg-type, return-value]
    assert len(saved) == 4


def test_nothing_is_kept_without_a_folder() -> None:
    run: Any = type("Run", (), {"status": "running"})
    assert Keeper(None).keep(run, lambda: pytest.fail("a record was asked for")) is None  # type: ignore[func-returns-value]
