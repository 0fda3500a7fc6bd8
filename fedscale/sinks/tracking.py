"""The ``[tracking]`` table of a job file, and the sinks that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedscale.errors import ConfigError
from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks.mlflow import MLflow
from fedscale.sinks.protocol import Sink
from fedscale.sinks.table import Table
from fedscale.sinks.tensorboard import TensorBoard
from fedscale.tables import Document

TABLE = "tracking"


class Tracking(BaseModel):
    """The ``[tracking]`` table of a job file: where the curves of its runs go besides the report.

    ``sinks`` are ``csv``, ``tensorboard`` and ``mlflow``; each writes into a folder of its name in the run's own, except that
    MLflow logs to ``mlflow_uri`` where one is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sinks: tuple[Literal["csv", "tensorboard", "mlflow"], ...] = ()
    mlflow_uri: str = ""


class Tracker:
    """Several sinks as one.

    Args:
        sinks: all of them.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks, self._taken = sinks, 0

    def take(self, row: RoundRecord) -> None:
        """A phase of a round has closed."""
        self._taken += 1
        for sink in self._sinks:
            sink.take(row)

    def catch_up(self, record: RunRecord) -> None:
        """Take the rounds of a record that grows, those behind the ones that were taken already."""
        for row in record.rounds[self._taken :]:
            self.take(row)

    def close(self, record: RunRecord) -> None:
        """The run is over; rounds that nobody told of, such as those before a checkpoint, are taken from its record."""
        self.catch_up(record)
        for sink in self._sinks:
            sink.close(record)


def read(job: Path, overrides: Iterable[str] = ()) -> Tracking:
    """The table of a job file; empty where it has none.

    Raises:
        PlanError: with file and line of the first problem.
    """
    return Document.load(job, overrides).read(Tracking, TABLE)


def chosen(sinks: Iterable[str], mlflow_uri: str = "") -> Tracking:
    """The table for sinks that somebody names.

    Raises:
        PlanError: there is no such sink.
    """
    return Document("--sink", {TABLE: {"sinks": list(sinks), "mlflow_uri": mlflow_uri}}, {}).read(Tracking, TABLE)


def track(tracking: Tracking, folder: Path, name: str) -> Tracker:
    """Open the sinks that a job asks for.

    Args:
        tracking: which.
        folder: the run's own.
        name: the job's.

    Raises:
        ConfigError: a package is missing, or a place cannot be written.
    """
    made: dict[str, Callable[[], Sink]] = {
        "csv": lambda: Table(folder / "csv"),
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "mlflow": lambda: MLflow(folder / "mlflow", tracking.mlflow_uri, name),
    }
    try:
        return Tracker([made[sink]() for sink in dict.fromkeys(tracking.sinks)])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ConfigError(f"the sink needs the package '{package}'", where="tracking.sinks", hint=f"pip install 'fedscale-fl[{package}]'") from None
    except OSError as error:
        raise ConfigError("a sink cannot be written", where=str(error.filename or folder), why=error.strerror or "") from None
