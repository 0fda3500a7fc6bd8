"""``fedscale run track``: a deployed run's curves, those that were there and those that come."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedscale.errors import ConfigError
from fedscale.sinks.table import Table
from tests.command import fedscale
from tests.server.fake_coordinator import Coordinator, serving
from tests.server.test_cli_run import detail, events


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    fake = Coordinator(answers={"GetRun": detail()}, streams=[events()])
    with serving(fake, tmp_path / "tls") as folder:
        monkeypatch.setenv("FEDSCALE_PROFILE", str(folder))
        monkeypatch.chdir(tmp_path)
        yield fake


def curve(path: Path, phase: str, name: str) -> list[tuple[str, float]]:
    with path.open(newline="") as file:
        return [(line["site"], float(line["value"])) for line in csv.DictReader(file) if (line["phase"], line["name"]) == (phase, name)]


def test_a_run_that_is_over_is_written_at_once(coordinator: Coordinator, tmp_path: Path) -> None:
    done = fedscale("run", "track", "risk-1", "--sink", "csv", "--json")
    assert done.data == {"run": "risk-1", "status": "completed", "rows": 2, "sinks": ["csv"], "folder": "runs/risk-1"}
    assert curve(tmp_path / "runs" / "risk-1" / "csv" / "curves.csv", "evaluate", "auc") == [("", 0.9), ("north", 0.8)]
    assert "WatchRun" not in [method for method, _ in coordinator.asked]


def test_a_run_that_goes_on_is_followed(coordinator: Coordinator, tmp_path: Path) -> None:
    states = iter(["running", *["completed"] * 9])
    coordinator.answers["GetRun"] = lambda: detail(next(states))
    done = fedscale("run", "track", "risk-1", "--sink", "csv", "--out", tmp_path / "here")
    assert done.code == 0
    assert "following risk-1" in done.err
    assert "WatchRun" in [method for method, _ in coordinator.asked]
    assert curve(tmp_path / "here" / "csv" / "curves.csv", "train", "loss") == [("", 0.5)], "each round once"


def test_curves_that_could_not_be_written_are_no_success(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("the sink 'csv' cannot be written")

    monkeypatch.setattr(Table, "take", fail)
    done = fedscale("run", "track", "risk-1", "--sink", "csv", "--json")
    assert (done.code, done.error["what"]) == (2, "the sink 'csv' cannot be written")
    assert done.err.count("goes on without one of its curves") == 1


def test_a_sink_that_does_not_exist_is_refused_before_anything_is_asked(coordinator: Coordinator) -> None:
    assert fedscale("run", "track", "risk-1", "--sink", "excel").code == 2
    assert coordinator.asked == []
