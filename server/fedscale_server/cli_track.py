"""``fedscale run track``: a deployed run's curves where a researcher looks at curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedscale import console
from fedscale.cli.options import Json
from fedscale.record import RunRecord
from fedscale.sinks import chosen
from fedscale.sinks import track as opened
from fedscale_server.options import ProfileFolder, RunId, connect

OVER = ("completed", "failed", "stopped")


def track(
    run: RunId,
    *,
    sink: Annotated[list[str] | None, typer.Option(help="tensorboard, mlflow or csv; may be repeated. TensorBoard by default.")] = None,
    mlflow_uri: Annotated[str, typer.Option(help="An MLflow tracking server or database, in place of a local one.")] = "",
    out: Annotated[Path | None, typer.Option(help="The folder; runs/RUN by default.")] = None,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Send a run's curves to TensorBoard, MLflow or a table, as it goes on."""
    tracking = chosen(sink or ["tensorboard"], mlflow_uri)
    with connect(profile) as control:
        detail = control.run(run)
        name, folder = detail.info.run, out or Path("runs", detail.info.run)
        with opened(tracking, folder, detail.info.name) as tracker:
            if detail.info.status not in OVER:
                console.note(f"following {name} until it ends")
                for event in control.watch(name, 0):
                    if event.kind == "closed":
                        tracker.catch_up(RunRecord.from_json(control.run(name).record))
            record = RunRecord.from_json(control.run(name).record)
            tracker.close(record)
    tracker.check()
    data = {"run": name, "status": record.status, "rows": len(record.rounds), "sinks": list(tracking.sinks), "folder": str(folder)}
    console.emit(data, f"{len(record.rounds)} rounds and evaluations of {name} in {folder}", as_json=json)
