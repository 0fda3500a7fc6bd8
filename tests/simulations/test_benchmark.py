"""The simulator's benchmark: what its rows say of each other, and of who does not end in time."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import pytest

from benchmarks import simulator
from benchmarks.rivals import workloads


def row(who: str, pace: float, loss: float = 1.0, **rest: object) -> simulator.Row:
    return {"workload": "w1", "who": who, "clients_per_s": pace, "first_round_s": 0.5, "final_loss": loss} | rest


def test_each_row_says_what_ours_is_to_it_and_what_it_is_to_pfl() -> None:
    rows = simulator.compared([row("fedscale", 60.0), row(simulator.PFL, 30.0), row("fedscale, mixed", 75.0, 2.0), row("plain", 20.0, 1.5)])
    assert [(each["ratio"], each["over_pfl"], each["same_work"]) for each in rows] == [
        (1.0, 2.0, True),
        (2.0, 1.0, True),
        (0.8, 2.5, True),  # another experiment, which may end with another loss
        (3.0, pytest.approx(20 / 30), False),
    ]


def test_without_ours_or_pfl_there_is_nothing_to_compare_with() -> None:
    assert simulator.compared([row("plain", 20.0)]) == [row("plain", 20.0)]
    assert "over_pfl" not in simulator.compared([row("fedscale", 60.0)])[0]


def test_who_is_given_up_in_the_middle_of_a_round_has_a_bound_for_a_pace() -> None:
    given_up = simulator.unfinished("flower", "w2", {}, 50.0)
    assert given_up["clients_per_s"] == 20.0
    assert simulator.unfinished("flower", "w2", {"cohort": 10}, 50.0)["clients_per_s"] == 0.2
    rows = simulator.compared([row("fedscale", 8000.0, workload="w2"), given_up])
    assert (rows[1]["ratio"], rows[1]["same_work"]) == (400.0, True)
    line = simulator._table(rows).splitlines()[-1]
    assert "< 20" in line
    assert "> 400" in line


@pytest.mark.parametrize(("begins", "limit"), [(True, 8.0), (False, 0.1)])
def test_a_run_that_takes_too_long_is_ended_and_counts_from_its_last_mark(
    begins: bool,
    limit: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mark = "Path(os.environ['BENCH_MARKS']).write_text(repr(time.monotonic()))" if begins else "pass"
    (tmp_path / "slow.py").write_text(f"import os, time\nfrom pathlib import Path\n{mark}\ntime.sleep(600)\n", encoding="utf-8")
    monkeypatch.setattr(simulator, "SCRIPTS", tmp_path)
    monkeypatch.setitem(simulator.RIVALS, "plain", "slow.py")
    began = time.monotonic()
    found = simulator.run(Path(sys.executable), "plain", "w3", tmp_path, limit=limit)
    lasted = time.monotonic() - began
    if not begins:
        assert found is None
        assert "plain on w3 gave no result:\nit took more than 0 s" in capsys.readouterr().err
        return
    assert found is not None
    assert found["clients_per_s"] >= 20 / lasted
    assert math.isnan(found["final_loss"])


def test_cohorts_are_those_of_the_workloads() -> None:
    assert {name: workload.cohort for name, workload in workloads.WORKLOADS.items()} == simulator.COHORTS
