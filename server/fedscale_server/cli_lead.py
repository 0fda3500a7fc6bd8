"""``fedscale run lead``: a Flower app's own ServerApp leads a run, in this process."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json, Settings
from fedscale.errors import Conflict, FedscaleError
from fedscale.flower import require
from fedscale.flower.deployment import job_of, module_of
from fedscale.flower.directory import Directory
from fedscale.plan import Plan
from fedscale.record import RunRecord
from fedscale_server.cli_submit import forecast, only_project
from fedscale_server.control import Control
from fedscale_server.desk import Desk
from fedscale_server.follow import conclude, problem_of
from fedscale_server.options import ProfileFolder, connect
from fedscale_server.packing import pack_folder
from fedscale_server.parcels import put

MODEL = "model.safetensors"


def lead(
    app: Annotated[Path, typer.Argument(metavar="DIR", help="A Flower app's directory. Its ServerApp runs here, its ClientApp at the sites.")],
    *,
    project: Annotated[str, typer.Option(help="The project; may be left out where there is only one.")] = "",
    settings: Settings = None,
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="Go on with a run whose leader was interrupted.")] = "",
    out: Annotated[Path | None, typer.Option(help="The folder for the results; runs/RUN by default.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Let a Flower app's own ServerApp lead a run, in this process."""
    require()
    directory, plan = job_of(app, settings or (), led=True)
    with connect(profile) as control:
        if dry_run:
            data = forecast(control, project or only_project(control), plan, _packed(directory))
            console.emit(data, console.facts(data), as_json=json)
            return
        desk = Desk(control, _resumed(control, run, plan) if run else _submitted(control, project, directory, plan))
        console.note(f"leading run {desk.run}; if this is interrupted, go on with: fedscale run lead {app} --run {desk.run}")
        ended = _led(directory, desk, plan)
        info = desk.conclude(ended.reason, ended.metrics)
        _save(control, info.run, ended.outcome.arrays, out or Path("runs", info.run))
        detail = control.run(info.run)
        raise typer.Exit(conclude(detail, problem_of(detail), as_json=json))


def _led(directory: Directory, desk: Desk, plan: Plan) -> Any:
    """The end of the ServerApp; what stops it from outside says how to go on."""
    go_on = f"fedscale run lead {directory.path} --run {desk.run}"
    try:
        return later("fedscale.flower.lead:lead")(directory, desk, plan.clients.deadline)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the run waits for its leader; go on: {go_on}") from None
    except FedscaleError as error:
        raise type(error)(error.what, where=error.where, why=error.why, hint=error.hint or f"the run waits for its leader; go on: {go_on}") from None


def _packed(directory: Directory) -> bytes:
    return pack_folder(directory.path, module_of(directory))


def _submitted(control: Control, project: str, directory: Directory, plan: Plan) -> str:
    """A new run's id."""
    info = control.submit(project or only_project(control), plan.to_toml(), put(control, _packed(directory)), secrets.token_hex(16))
    return info.run


def _resumed(control: Control, run: str, plan: Plan) -> str:
    """The id of a run to go on with.

    Raises:
        Conflict: it was begun with other settings, or other code.
    """
    detail = control.run(run)
    begun = Plan.from_toml(RunRecord.from_json(detail.record).plan_toml)
    if begun.digest != plan.digest:
        what = "plan" if begun.strategy == plan.strategy else "app, or with other settings of it"
        raise Conflict(f"run {detail.info.run} was begun with another {what}", hint="give the same directory, as it was, and the same --set as then")
    return detail.info.run


def _save(control: Control, run: str, arrays: Any, folder: Path) -> None:
    """Leave the record, the report and the strategy's model in a folder."""
    record = RunRecord.from_json(control.run(run).record)
    later("fedscale.report:write")(record, folder)
    if arrays:
        content = later("safetensors.numpy:save")(dict(_whole(arrays)))
        (folder / MODEL).write_bytes(content)


def _whole(arrays: Any) -> Iterable[tuple[str, Any]]:
    """Arrays whose bytes lie one behind the other, as the format wants them."""
    return ((name, later("numpy:asarray")(array, order="C")) for name, array in arrays.items())
