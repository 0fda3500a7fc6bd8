"""``fedscale run track``: a deployed run's curves where a researcher looks at curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedscale import console
from fedscale.cli.options import Json
from fedscale.record import RunRecord
from fedscale.sinks import Tracker, chosen
from fedscale.sinks import track as opened
from fedscale_server.answers import RunInfo
from fedscale_server.control import Control
from fedscale_server.left import coordinator_of, detail_in, folder_of, left_in
from fedscale_server.options import ProfileFolder, RunOrFolder

OVER = ("completed", "failed", "stopped")


def track(
    run: RunOrFolder,
    *,
    sink: Annotated[list[str] | None, typer.Option(help="tensorboard, mlflow or csv; may be repeated. TensorBoard by default.")] = None,
    mlflow_uri: Annotated[str, typer.Option(help="An MLflow tracking server or database, in place of a local one.")] = "",
    out: Annotated[Path | None, typer.Option(help="The folder; runs/RUN by default, or the folder itself.")] = None,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Send a run's curves to TensorBoard, MLflow or a table, as it goes on."""
    tracking = chosen(sink or ["tensorboard"], mlflow_uri)
    folder = out or left_in(run)
    if (place := folder_of(run)) is not None:
        record = RunRecord.from_json(detail_in(place).record)
        with opened(tracking, folder, record.name) as tracker:
            tracker.close(record)
    else:
        with coordinator_of(run, profile) as control:
            info = control.run(run).info
            with opened(tracking, folder, info.name) as tracker:
                record = _followed(control, info, tracker)
    tracker.check()
    data = {"run": run, "status": record.status, "rows": len(record.rounds), "sinks": list(tracking.sinks), "folder": str(folder)}
    console.emit(data, f"{len(record.rounds)} rounds and evaluations of {run} in {folder}", as_json=json)


def _followed(control: Control, info: RunInfo, tracker: Tracker) -> RunRecord:
    """The record of a run that is over, once all of it has gone to its sinks."""
    if info.status not in OVER:
        console.note(f"following {info.run} until it ends")
        for event in control.watch(info.run, 0):
            if event.kind == "closed":
                tracker.catch_up(RunRecord.from_json(control.run(info.run).record))
    record = RunRecord.from_json(control.run(info.run).record)
    tracker.close(record)
    return record
