"""Runs in an MLflow tracking server or a local database: metrics by round, the plan's facts as parameters and tags."""

from __future__ import annotations

import math
import time
from pathlib import Path

from fedscale.record import RoundRecord, RunRecord, summary
from fedscale.sinks.protocol import values, writing

ENDED = {"completed": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
MOST_AT_ONCE = 1000


class MLflow:
    """One MLflow run; the experiment bears the job's name.

    Args:
        folder: where ``mlflow.db`` is kept if there is no ``uri``.
        uri: of a tracking server or database.
        name: the job's.
    """

    def __init__(self, folder: Path, uri: str, name: str) -> None:
        from mlflow.entities import Metric, RunTag
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric, self._tag, self._fault = Metric, RunTag, MlflowException
        with writing("mlflow", self._fault):
            folder.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{(folder / 'mlflow.db').absolute()}")
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            self._run = self._client.create_run(experiment, run_name=name).info.run_id

    def take(self, row: RoundRecord) -> None:
        """Log the metrics of a round; MLflow takes no value that is not finite."""
        now = int(1000 * time.time())
        named = {f"{row.phase}/{name}/{site}" if site else f"{row.phase}/{name}": value for site, name, value in values(row)}
        metrics = [self._metric(key, value, now, row.number) for key, value in named.items() if math.isfinite(value)]
        with writing("mlflow", self._fault):
            for at in range(0, len(metrics), MOST_AT_ONCE):
                self._client.log_batch(self._run, metrics=metrics[at : at + MOST_AT_ONCE])

    def close(self, record: RunRecord | None) -> None:
        """Tag the run with what it was and how it ended."""
        told = summary(record) if record else {}
        facts = {name: value for name, value in told.items() if isinstance(value, str | int) and value != ""}
        with writing("mlflow", self._fault):
            self._client.log_batch(self._run, tags=[self._tag(f"fedscale.{name}", str(value)) for name, value in facts.items()])
            self._client.set_terminated(self._run, ENDED.get(record.status, "FINISHED") if record else "KILLED")
