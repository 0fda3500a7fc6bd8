"""Sinks read back by the packages they are for: what TensorBoard, MLflow and a reader of CSV find is what the record says."""

from __future__ import annotations

import csv
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedscale.errors import Cause, ConfigError, Failure, PlanError
from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks import chosen, read, track
from tests.command import fedscale

LOST = Failure(Cause.LOST, "the connection broke")


def row(number: int, phase: str = "evaluate", **metrics: float) -> RoundRecord:
    sites = {"north": {name: value / 2 for name, value in metrics.items()}}
    return RoundRecord(number, phase, ("north",), {"south": LOST}, metrics, sites, 9.0, 2.5, 1000, 2000)  # type: ignore[arg-type]


def record(*rounds: RoundRecord, status: str = "completed") -> RunRecord:
    return RunRecord("risk-1", "risk", status, "", "", "ab" * 32, ("north", "south"), rounds, 3.0, 1000, 2000, "", {})


ROUNDS = (row(1, "train", loss=0.75), row(1, auc=0.5, loss=0.25), row(2, "train", loss=0.5), row(2, auc=0.875, loss=0.125))


def filled(folder: Path, *sinks: str, uri: str = "", rounds: tuple[RoundRecord, ...] = ROUNDS, status: str = "completed") -> Path:
    """The folder of a run that was tracked as it went on."""
    tracker = track(chosen(sinks, uri), folder, "risk")
    for closed in rounds[:-1]:
        tracker.take(closed)
    tracker.close(record(*rounds, status=status))
    return folder


def test_a_table_has_every_number_once(tmp_path: Path) -> None:
    with (filled(tmp_path, "csv") / "csv" / "curves.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    curve = [(int(line["round"]), float(line["value"])) for line in lines if (line["phase"], line["site"], line["name"]) == ("evaluate", "", "auc")]
    assert curve == [(1, 0.5), (2, 0.875)]
    assert {line["site"] for line in lines} == {"", "north"}
    facts = {line["name"]: float(line["value"]) for line in lines if line["phase"] == "train" and line["round"] == "1" and not line["site"]}
    assert facts == {"loss": 0.75, "answered": 1.0, "failed": 1.0, "seconds": 2.5, "bytes_up": 1000.0, "bytes_down": 2000.0}


def test_a_table_is_whole_after_every_round(tmp_path: Path) -> None:
    tracker = track(chosen(["csv"]), tmp_path, "risk")
    tracker.take(ROUNDS[1])
    assert (tmp_path / "csv" / "curves.csv").read_text().count("\n") == 1 + 4 + 5
    tracker.close(record(ROUNDS[1]))


@pytest.mark.requires("tensorboard")
def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(filled(tmp_path, "tensorboard") / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("evaluate/auc")] == [(1, 0.5), (2, 0.875)]
    assert [(event.step, event.value) for event in found.Scalars("train/loss/north")] == [(1, 0.375), (2, 0.25)]
    assert [event.value for event in found.Scalars("train/bytes_up")] == [1000.0, 1000.0]


@pytest.fixture
def quiet() -> Iterator[None]:
    """MLflow tells its log of every table it makes."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.requires("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_curves_and_facts(tmp_path: Path, quiet: None) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'all.db'}"
    filled(tmp_path / "one", "mlflow", uri=uri)
    filled(tmp_path / "two", "mlflow", uri=uri, rounds=(row(1, loss=float("nan"), auc=0.25), row(2, auc=0.5)), status="failed")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("risk")
    assert experiment is not None
    runs = {run.info.status: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"FINISHED", "FAILED"}
    history = client.get_metric_history(runs["FINISHED"].info.run_id, "evaluate/auc")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.875)]
    assert runs["FINISHED"].data.tags["fedscale.run"] == "risk-1"
    assert "evaluate/loss" not in runs["FAILED"].data.metrics, "no value that is not finite"
    assert runs["FAILED"].data.metrics["evaluate/auc/north"] == 0.25


def test_sinks_that_do_not_exist(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[job]\nname = "x"\n\n[tracking]\nsinks = ["wandb"]\n')
    with pytest.raises(PlanError, match="sinks"):
        read(job)
    with pytest.raises(PlanError):
        chosen(["excel"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the sink .csv. cannot be written"):
        track(chosen(["csv"]), tmp_path / "file", "x")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorboard.compat.proto.event_pb2", "tensorboard.compat.proto", "tensorboard.compat", "tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        track(chosen(["tensorboard"]), tmp_path, "x")
    assert caught.value.hint == "pip install 'fedscale-fl[tensorboard]'"


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import sys, fedscale.sinks; print([name for name in ('mlflow', 'tensorboard') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.requires("torch", "sklearn")
def test_a_simulation_feeds_the_sinks_of_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedscale("init", "job", "--template", "sklearn").code == 0
    job = tmp_path / "job" / "job.toml"
    job.write_text(job.read_text() + '\n[tracking]\nsinks = ["csv"]\n')
    done = fedscale("simulate", job, "--set", "strategy.rounds=2", "--clients", "3", "--engine", "sequential", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    with (tmp_path / "out" / "csv" / "curves.csv").open(newline="") as file:
        found = {(line["phase"], line["round"], line["name"]): line["value"] for line in csv.DictReader(file) if not line["site"]}
    kept = RunRecord.from_json((tmp_path / "out" / "metrics.json").read_text())
    assert kept.rounds
    for closed in kept.rounds:
        assert {name: float(found[closed.phase, str(closed.number), name]) for name in closed.metrics} == pytest.approx(closed.metrics)
