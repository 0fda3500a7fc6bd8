"""Several sinks as one: each round once whatever was resumed, and a sink that fails ends no run."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fedscale.errors import ConfigError
from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks import Tracker, chosen, track
from fedscale.sinks.table import Table
from fedscale.sinks.tensorboard import TensorBoard
from fedscale_simulations import cli
from fedscale_simulations.result import Progress
from tests.command import fedscale
from tests.fedscale.sinks.test_sinks import ROUNDS, filled, quiet, record, row
from tests.simulations.test_cli import write_job

__all__ = ["quiet"]
BROKEN = "cannot be written"


class Kept:
    """A sink that keeps what it is told, and fails from one of its rounds on."""

    def __init__(self, *, lasts: int = 99, closes: bool = True) -> None:
        self.rows: list[RoundRecord] = []
        self.ended: list[str] = []
        self._lasts, self._closes = lasts, closes

    def take(self, row: RoundRecord) -> None:
        if len(self.rows) == self._lasts:
            raise ConfigError("the disk is full")
        self.rows.append(row)

    def close(self, record: RunRecord | None) -> None:
        self.ended.append(record.status if record else "left")
        if not self._closes:
            raise ConfigError("the line is dead")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------ each round once


def test_a_record_that_grows_is_taken_once() -> None:
    kept = Kept()
    tracker = Tracker([kept])
    tracker.catch_up(record(*ROUNDS[:1]))
    tracker.catch_up(record(*ROUNDS[:3]))
    tracker.close(record(*ROUNDS))
    tracker.check()
    assert (kept.rows, kept.ended) == (list(ROUNDS), ["completed"])


@pytest.mark.parametrize("told", [0, 1, 3])
def test_rounds_before_a_checkpoint_are_taken_from_the_record(told: int) -> None:
    kept = Kept()
    tracker = Tracker([kept])
    for closed in ROUNDS[told:]:
        tracker.take(closed)
    tracker.close(record(*ROUNDS))
    assert kept.rows == [*ROUNDS[told:], *ROUNDS[:told]]


@pytest.mark.requires("tensorboard")
def test_a_resumed_run_has_each_point_once_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with track(chosen(["tensorboard"]), tmp_path, "risk") as stopped:
        for closed in ROUNDS[:2]:
            stopped.take(closed)
    found = EventAccumulator(str(filled(tmp_path, "tensorboard") / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("evaluate/auc")] == [(1, 0.5), (2, 0.875)]


def test_a_resumed_simulation_has_each_number_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, left = tracked(tmp_path, monkeypatch), list[object]()

    class Impatient(cli.Show):
        def __call__(self, progress: Progress) -> None:
            super().__call__(progress)
            if progress.number == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "Show", Impatient)
        patch.setattr(Table, "close", lambda _, record: left.append(record))
        assert fedscale("simulate", job, "--out", "out").code == 130
    assert left == [None], "its sinks were closed"
    done = fedscale("simulate", job, "--out", "out", "--resume")
    assert done.code == 0, done.err
    found = Counter((line["phase"], int(line["round"]), line["name"]) for line in table(Path("out")) if not line["site"])
    assert set(found.values()) == {1}
    kept = RunRecord.from_json(Path("out", "metrics.json").read_text())
    assert list(dict.fromkeys(key[:2] for key in found)) == [(closed.phase, closed.number) for closed in kept.rounds], "in their order"
    assert {closed.number for closed in kept.rounds} == {1, 2, 3}


def test_without_a_checkpoint_the_curves_of_before_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tracked(tmp_path, monkeypatch)
    filled(tmp_path / "out", "csv")
    assert fedscale("simulate", job, "--out", "out", "--resume").code == 6
    assert {line["name"] for line in table(tmp_path / "out")} > {"auc", "loss"}


# ------------------------------------------------------------------------------------------------------- sinks that fail


def test_a_sink_that_fails_is_left_out_and_closed_all_the_same() -> None:
    broken, kept, told = Kept(lasts=1), Kept(), list[str]()
    tracker = Tracker([broken, kept], told.append)
    for closed in ROUNDS:
        tracker.take(closed)
    tracker.close(record(*ROUNDS))
    assert (broken.rows, kept.rows) == ([ROUNDS[0]], list(ROUNDS))
    assert (broken.ended, kept.ended) == (["completed"], ["completed"])
    assert told == ["the run goes on without one of its curves: the disk is full"]
    with pytest.raises(ConfigError, match="the disk is full"):
        tracker.check()


def test_a_sink_that_cannot_be_closed_keeps_no_other_open() -> None:
    broken, dead, kept, told = Kept(closes=False), Kept(lasts=0, closes=False), Kept(), list[str]()
    with Tracker([broken, dead, kept], told.append) as tracker:
        tracker.close(record(*ROUNDS))
    assert [sink.ended for sink in (broken, dead, kept)] == [["completed"]] * 3
    assert [warning.rpartition(": ")[2] for warning in told] == ["the disk is full", "the line is dead"], "each is told of once"


def test_a_run_without_an_end_closes_its_sinks() -> None:
    kept = Kept()

    def interrupted() -> None:
        with Tracker([kept]) as tracker:
            tracker.take(ROUNDS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (kept.rows, kept.ended) == ([ROUNDS[0]], ["left"])


def test_a_table_on_a_full_disk(tmp_path: Path) -> None:
    told: list[str] = []
    tracker = track(chosen(["csv"]), tmp_path, "risk", told.append)
    (tmp_path / "csv" / "curves.csv").unlink()
    (tmp_path / "csv" / "curves.csv").symlink_to("/dev/full")
    tracker.take(ROUNDS[0])
    tracker.close(record(*ROUNDS))
    assert told == ["the run goes on without one of its curves: the sink 'csv' cannot be written (No space left on device)"]


@pytest.mark.requires("tensorboard")
def test_a_tensorboard_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.compat import tf

    sink = TensorBoard(tmp_path)
    for fault, why in ((OSError(28, "No space left on device"), "No space"), (tf.errors.NotFoundError(None, None, "gone"), "NotFoundError")):

        def fail(fault: Exception = fault) -> None:
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(sink._writer, "flush", fail)
            with pytest.raises(ConfigError, match=f"'tensorboard' {BROKEN}.*{why}"):
                sink.take(ROUNDS[0])
    sink.close(None)
    with pytest.raises(ConfigError, match=f"'tensorboard' {BROKEN}"):
        sink.take(ROUNDS[1])


@pytest.mark.requires("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_an_mlflow_run_that_is_gone_or_left(tmp_path: Path, quiet: None) -> None:
    from mlflow.tracking import MlflowClient

    uri, told = f"sqlite:///{tmp_path / 'all.db'}", list[str]()
    client = MlflowClient(tracking_uri=uri)
    with track(chosen(["mlflow"], uri), tmp_path, "risk", told.append) as left:
        left.take(ROUNDS[0])
    experiment = client.get_experiment_by_name("risk")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, told) == ("KILLED", [])
    gone = track(chosen(["mlflow"], uri), tmp_path, "risk", told.append)
    for one in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
        client.delete_run(one.info.run_id)
    gone.take(row(1, auc=0.5))
    gone.close(record(*ROUNDS))
    assert told == ["the run goes on without one of its curves: the sink 'mlflow' cannot be written (MlflowException)"]


def test_a_sink_that_fails_ends_no_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tracked(tmp_path, monkeypatch)
    take = Tracker.take

    def lose(self: Tracker, row: RoundRecord) -> None:
        shutil.rmtree("out/csv", ignore_errors=True)
        take(self, row)

    monkeypatch.setattr(Tracker, "take", lose)
    done = fedscale("simulate", job, "--out", "out", "--json")
    assert done.data["status"] == "completed"
    assert done.err.count(f"the sink 'csv' {BROKEN} (No such file or directory)") == 1
    assert json.loads(Path("out", "summary.json").read_text())["rounds"] == 3


def tracked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of three rounds with a table, in a folder that is now the current one."""
    monkeypatch.chdir(folder)
    job = write_job(folder / "job")
    job.write_text(job.read_text() + '\n[tracking]\nsinks = ["csv"]\n')
    return job
