"""A simulation that is killed before its first round is over goes on in the form that was asked for."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fedscale.torch_learner import settle_fork
from fedscale_simulations.checkpoint import FILE, recorded
from fedscale_simulations.engines.choice import Choice
from fedscale_simulations.result import Progress, Simulation
from fedscale_simulations.simulator import simulate
from tests.simulations.test_kill import PATIENCE, wait_for
from tests.simulations.zoo import ZOO

KIND = ZOO["written"]


def run_of(**rest: Any) -> Simulation:
    return simulate(KIND.app, KIND.clients((20,) * 12), rounds=2, seed=3, train={"batch_size": 10, "device": "cpu"}, evaluate={"every": 0}, **rest)


def hang(progress: Progress) -> None:
    """Train nobody to the end of the first round."""
    if progress.phase == "train":
        time.sleep(2 * PATIENCE)


def killed(folder: Path, **rest: Any) -> None:
    """A simulation in a process of its own that gets as far as its first checkpoint."""
    child = os.fork()
    if not child:
        try:
            settle_fork()
            run_of(folder=folder, on_progress=hang, **rest)
        finally:
            os._exit(0)
    wait_for(folder / FILE, child)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(("asked", "form", "later"), [("vectorized", "vectorized", "auto"), ("sequential", "sequential", "vectorized")])
def test_a_run_killed_in_its_first_round_goes_on_in_the_form_it_was_asked_for(tmp_path: Path, asked: str, form: str, later: str) -> None:
    whole = run_of(engine=asked, workers=1)
    killed(tmp_path, engine=asked, workers=1)
    before = recorded(tmp_path)
    assert (before.rounds, before.extra["engine"]) == ((), {"form": form})
    resumed = run_of(resume=tmp_path, engine=later, workers=1)
    note = resumed.record.extra["engine"]
    assert isinstance(note, dict)
    assert (note["form"], note["why"]) == (form, "as the run began")
    assert resumed.digest == whole.digest
    assert run_of(engine="sequential" if form == "vectorized" else "vectorized", workers=1).digest != whole.digest, "the forms round alike here"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_run_that_was_asked_for_nothing_is_free_to_choose_again(tmp_path: Path) -> None:
    killed(tmp_path)
    assert "engine" not in recorded(tmp_path).extra
    assert run_of(resume=tmp_path).digest == run_of(engine="sequential").digest


def test_a_run_that_goes_on_is_spread_over_processes_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_simulations.engines.choice.Chooser._seconds", lambda *_: 1.0)
    monkeypatch.setattr("fedscale_simulations.engines.choice.Chooser._forkable", lambda _: True)
    monkeypatch.setattr("fedscale_simulations.engines.choice.processors", lambda: 2)
    assert Choice().after(run_of(engine="sequential").record).form == "sequential"

    def stop(progress: Progress) -> None:
        if progress.closed and progress.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(folder=tmp_path, on_progress=stop)
    resumed = run_of(resume=tmp_path)
    note = resumed.record.extra["engine"]
    assert isinstance(note, dict)
    assert (note["form"], note["workers"]) == ("sequential", 2)
