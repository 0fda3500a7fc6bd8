"""The oracle sees every answer that was lost, doubled or made up; checked on models that are made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedscale.data import from_csv
from fedscale.plan import Plan
from fedscale.record import RoundRecord, RunRecord
from fedscale_simulations.chaos.oracle import DENSE, LABEL, Counted, Job, OneHot, count
from fedscale_simulations.simulator import simulate

JOB = Job(("ada", "ben", "cyd"), rounds=2)


def record(*answered: tuple[str, ...]) -> RunRecord:
    rounds = tuple(RoundRecord(n, "train", who, {}, {}, {}, float(len(who)), 0.0, 0, 0) for n, who in enumerate(answered, 1))
    return RunRecord("r", "chaos", "completed", "", "", "", JOB.nodes, rounds, 0.0, 0, 0, "", {})


def model(*lights: float) -> np.ndarray:
    return np.array([*lights, *[0.3] * DENSE], np.float32)


ALL, TWO = ("ada", "ben", "cyd"), ("ada", "ben")
THIRD = 1 / 3


@pytest.mark.parametrize(
    ("answered", "lights", "accepted", "expected"),
    [
        ((ALL, ALL), [THIRD] * 6, (), Counted(0, 0, 0)),
        ((ALL, TWO), [THIRD] * 3 + [0.5, 0.5, 0.0], (), Counted(0, 0, 0)),
        ((ALL, ALL), [THIRD] * 5 + [0.0], (), Counted(1, 0, 0)),
        ((ALL, ALL), [2 * THIRD] + [THIRD] * 5, (), Counted(0, 1, 0)),
        ((ALL, ALL), [4 * THIRD] + [THIRD] * 4 + [0.0], (), Counted(1, 3, 0)),
        ((ALL, TWO), [THIRD] * 3 + [0.5, 0.5, 0.5], (), Counted(0, 0, 1)),
        # The server told the node that it had its answer, and then closed the round without it.
        ((ALL, TWO), [THIRD] * 3 + [0.5, 0.5, 0.0], ((2, "cyd"),), Counted(1, 0, 0)),
    ],
)
def test_each_light_is_counted(
    answered: tuple[tuple[str, ...], ...], lights: list[float], accepted: tuple[tuple[int, str], ...], expected: Counted
) -> None:
    assert count(JOB, record(*answered), model(*lights), accepted) == expected


@pytest.fixture
def tables(tmp_path: Path) -> Callable[[Job], dict[str, object]]:
    def written(job: Job) -> dict[str, object]:
        for node in job.nodes:
            (tmp_path / f"{node}.csv").write_text(job.table(node))
        return {node: from_csv(tmp_path / f"{node}.csv", LABEL) for node in job.nodes}

    return written


def test_a_run_that_nothing_happens_to_lights_everything_once(tables: Callable[[Job], dict[str, object]]) -> None:
    ended = simulate(OneHot(3, 2), tables(JOB), plan=JOB.plan(), engine="sequential")
    assert ended.vector is not None
    assert count(JOB, ended.record, ended.vector) == Counted(0, 0, 0)
    assert ended.vector[:-DENSE] == pytest.approx([THIRD] * 6, abs=1e-6)
    assert np.abs(ended.vector[-DENSE:]).min() > 0


def test_a_job_is_written_as_everybody_writes_one(tmp_path: Path) -> None:
    file = JOB.write(tmp_path / "job")
    assert Plan.load(file).digest == JOB.plan().digest
    assert (tmp_path / "job/app.py").read_text() == (
        "from fedscale_simulations.chaos.oracle import OneHot\n\napp = OneHot(nodes=3, rounds=2, pace=0.1)\n"
    )
    assert (JOB.plan().clients.min_per_round, Job(JOB.nodes, 2, quorum=2).plan().clients.min_per_round) == (3, 2)
