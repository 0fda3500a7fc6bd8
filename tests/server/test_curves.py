"""Curves that the coordinator writes itself: complete where a sink keeps up, and without any effect on a run where it does not."""

from __future__ import annotations

import csv
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fedscale.errors import ConfigError
from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks import chosen
from fedscale.sinks.table import Table
from fedscale_server import curves as subject
from fedscale_server.answers import Status
from fedscale_server.curves import Curves
from fedscale_server.web.prometheus import exposition
from tests.server.running import Running, plan_text, until

PATIENCE = 240.0  # MLflow alone takes long to load


def row(number: int) -> RoundRecord:
    return RoundRecord(number, "train", ("north",), {}, {"loss": 1.0 / number}, {}, 9.0, 2.5, 1000, 2000)


def record(*rounds: RoundRecord, status: str = "completed") -> RunRecord:
    return RunRecord("risk-1", "risk", status, "", "", "ab" * 32, ("north",), rounds, 3.0, 1000, 2000, "", {})


def losses(folder: Path) -> list[int]:
    """The rounds whose loss is in the table."""
    path = folder / "csv" / "curves.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [int(line["round"]) for line in csv.DictReader(file) if line["name"] == "loss" and not line["site"]]


async def have(found: Callable[[], bool]) -> bool:
    """Wait until it is so."""
    return await until(lambda: found() or None, PATIENCE)


async def test_rounds_are_written_as_they_close_each_once(tmp_path: Path) -> None:
    made = Curves(chosen(["csv"]), tmp_path)
    rows = [row(1)]
    made.take("risk-1", "risk", rows)
    assert await have(lambda: losses(tmp_path / "risk-1") == [1])
    rows.append(row(2))
    made.take("risk-1", "risk", rows)
    made.take("risk-1", "risk", rows)
    made.end(record(*rows, row(3)))
    assert await have(lambda: losses(tmp_path / "risk-1") == [1, 2, 3])
    assert (made.dropped["csv"], made.failed["csv"]) == (0, 0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Tables do not get anything done before this is set."""
    go, take = threading.Event(), Table.take

    def slow(self: Table, told: RoundRecord) -> None:
        assert go.wait(PATIENCE)
        take(self, told)

    monkeypatch.setattr(Table, "take", slow)
    yield go
    go.set()


async def test_a_sink_that_hangs_is_left_behind_and_told_the_rest_in_the_end(
    tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "WAITING", 3)
    made = Curves(chosen(["csv"]), tmp_path)
    rows = [row(number) for number in range(1, 21)]
    for count in range(1, 21):
        made.take("risk-1", "risk", rows[:count])
    made.end(record(*rows))
    assert made.dropped["csv"] >= 20 - 3 - 1
    assert losses(tmp_path / "risk-1") == []
    held.set()
    assert await have(lambda: sorted(losses(tmp_path / "risk-1")) == list(range(1, 21)))


async def test_a_sink_that_hangs_does_not_keep_the_coordinator_from_going_down(
    tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "LAST_SECONDS", 0.05)
    made = Curves(chosen(["csv"]), tmp_path)
    made.take("risk-1", "risk", [row(1)])
    made.close()
    assert losses(tmp_path / "risk-1") == []


async def test_sinks_do_not_wait_for_each_other(tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    class Quick:
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def take(self, told: RoundRecord) -> None:
            taken.append(told.number)

        def close(self, told: RunRecord | None) -> None:
            """Nothing is left to do."""

    monkeypatch.setattr("fedscale.sinks.tracking.TensorBoard", Quick)
    made = Curves(chosen(["csv", "tensorboard"]), tmp_path)
    made.take("risk-1", "risk", [row(1), row(2)])
    assert await have(lambda: taken == [1, 2])
    assert losses(tmp_path / "risk-1") == []


async def test_a_sink_that_fails_is_counted_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("the sink 'csv' cannot be written")

    monkeypatch.setattr(Table, "take", fail)
    made = Curves(chosen(["csv"]), tmp_path)
    made.take("risk-1", "risk", [row(1), row(2)])
    assert await have(lambda: made.failed["csv"] == 1)
    (tmp_path / "risk-2").write_text("where a folder should be")
    made.take("risk-2", "risk", [row(1)])
    assert await have(lambda: made.failed["csv"] == 2)
    made.end(record(row(1), row(2)))
    assert made.failed["csv"] == 2


# ------------------------------------------------------------------------------------------------------- in a coordinator


async def trained(server: Running, rounds: int = 3) -> str:
    """A run to its end; its id."""
    (ada,) = await server.nodes("ada")
    run = await server.submit(plan_text(rounds=rounds, every=1))
    ada.work()
    info, _ = await server.over(run)
    assert info.info.status == "completed"
    return run


@pytest.mark.requires("tensorboard", "mlflow")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
async def test_a_coordinator_fills_tensorboard_mlflow_and_a_table_as_a_run_goes_on(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    uri = f"sqlite:///{tmp_path / 'all.db'}"
    server = await Running.start(tmp_path / "server", sinks=("csv", "tensorboard", "mlflow"), mlflow_uri=uri)
    try:
        run = await trained(server)
        folder = server.path / "curves" / run
        assert await have(lambda: losses(folder) == [1, 1, 2, 2, 3, 3])

        def steps() -> list[int]:
            found = EventAccumulator(str(folder / "tensorboard"))
            found.Reload()
            return [event.step for event in found.Scalars("train/loss")] if "train/loss" in found.Tags()["scalars"] else []

        assert await have(lambda: steps() == [1, 2, 3])

        def finished() -> bool:
            """Read without MLflow, which would make its tables here while the coordinator makes them."""
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{tmp_path / 'all.db'}?mode=ro", uri=True)) as database:
                return bool(database.execute("SELECT 1 FROM runs WHERE status = 'FINISHED'").fetchall())
            return False

        assert await have(finished)
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("trial")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        assert found.data.tags["fedscale.run"] == run
        assert [metric.step for metric in client.get_metric_history(found.info.run_id, "evaluate/loss")] == [1, 2, 3]
    finally:
        await server.close()


async def test_a_dead_sink_ends_no_run_and_is_shown(tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "WAITING", 1)
    monkeypatch.setattr(subject, "LAST_SECONDS", 0.05)
    server = await Running.start(tmp_path / "server", sinks=("csv",))
    try:
        await trained(server, rounds=4)
        made = server.engine.curves
        assert made is not None
        assert made.dropped["csv"] > 0
        page = exposition(server.engine, Status("9", "trial", "", "", (), ())).decode()
        assert re.search(r'^fedscale_curves_dropped_total\{sink="csv"\} [1-9]', page, re.MULTILINE), page
        assert 'fedscale_curves_failed_total{sink="csv"} 0.0' in page
    finally:
        await server.close()


async def test_a_run_that_a_restart_interrupts_is_written_whole(tmp_path: Path) -> None:
    server = await Running.start(tmp_path / "server", sinks=("csv",))
    try:
        (ada,) = await server.nodes("ada")
        run, (ask,) = await server.begun(ada, rounds=2)
        await ada.answer(ask)
        folder = server.path / "curves" / run
        assert await have(lambda: losses(folder) == [1])
        await server.restart()
        server.people.remove(server.admin)
        ada.channel = ada.credentials.channel(server.ready.address)
        await ada.connect()
        ada.work()
        await server.over(run)
        assert await have(lambda: losses(folder) == [1, 2])
    finally:
        await server.close()
