"""The ``[tracking]`` table of a job file, and the sinks that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypeVar

from fedscale import console
from fedscale.errors import ConfigError
from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks.mlflow import MLflow
from fedscale.sinks.protocol import Sink
from fedscale.sinks.table import Table
from fedscale.sinks.tensorboard import TensorBoard
from fedscale.tables import Document, Section

TABLE = "tracking"
Warn: TypeAlias = Callable[[str], None]
T = TypeVar("T")


class Tracking(Section):
    """The ``[tracking]`` table of a job file: where the curves of its runs go besides the report.

    ``sinks`` are ``csv``, ``tensorboard`` and ``mlflow``; each writes into a folder of its name in the run's own, except that
    MLflow logs to ``mlflow_uri`` where one is given.
    """

    sinks: tuple[Literal["csv", "tensorboard", "mlflow"], ...] = ()
    mlflow_uri: str = ""


class Tracker:
    """Several sinks as one, to be used in a ``with`` statement; a sink that fails is left out and the run goes on.

    Args:
        sinks: all of them.
        warn: told once of each sink that fails.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Warn = console.note) -> None:
        self._open, self._warn = list(sinks), warn
        self._failed: dict[int, ConfigError] = {}
        self._taken: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        """Nothing is left to open."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close what a run without an end has left open."""
        self._end(None)

    def take(self, row: RoundRecord) -> None:
        """A phase of a round has closed."""
        self._taken.add((row.phase, row.number))
        for at, sink in enumerate(self._open):
            if at not in self._failed:
                self._try(at, sink.take, row)

    def catch_up(self, record: RunRecord) -> None:
        """Take the rounds of a record that were not taken already."""
        for row in record.rounds:
            if (row.phase, row.number) not in self._taken:
                self.take(row)

    def close(self, record: RunRecord) -> None:
        """The run is over; rounds that nobody told of, such as those before a checkpoint, are taken from its record."""
        self.catch_up(record)
        self._end(record)

    def check(self) -> None:
        """For those who want nothing but the curves.

        Raises:
            ConfigError: a sink has failed.
        """
        for error in self._failed.values():
            raise error

    def _end(self, record: RunRecord | None) -> None:
        """Close every sink, also one that failed: its file or its run is open all the same."""
        for at, sink in enumerate(self._open):
            self._try(at, sink.close, record)
        self._open = []

    def _try(self, at: int, tell: Callable[[T], None], told: T) -> None:
        """Tell a sink something; the first time that it fails, warn."""
        try:
            tell(told)
        except ConfigError as error:
            if at not in self._failed:
                self._warn(f"the run goes on without one of its curves: {error}")
                self._failed[at] = error


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


def track(tracking: Tracking, folder: Path, name: str, warn: Warn = console.note) -> Tracker:
    """Open the sinks that a job asks for.

    Args:
        tracking: which.
        folder: the run's own.
        name: the job's.
        warn: told once of each sink that fails later.

    Raises:
        ConfigError: a package is missing, or a place cannot be written.
    """
    made: dict[str, Callable[[], Sink]] = {
        "csv": lambda: Table(folder / "csv"),
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "mlflow": lambda: MLflow(folder / "mlflow", tracking.mlflow_uri, name),
    }
    try:
        return Tracker([made[sink]() for sink in dict.fromkeys(tracking.sinks)], warn)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ConfigError(f"the sink needs the package '{package}'", where="tracking.sinks", hint=f"pip install 'fedscale-fl[{package}]'") from None
