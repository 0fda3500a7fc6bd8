"""``fedscale run lead``: a Flower app's own ServerApp leads a run, in this process."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json, Settings
from fedscale.errors import ConfigError, Conflict, FedscaleError
from fedscale.flower import require
from fedscale.flower.deployment import job_of, module_of
from fedscale.flower.directory import Directory
from fedscale.letters import MODEL
from fedscale.plan import Plan
from fedscale.record import RunRecord
from fedscale.wire.codec import digest_of
from fedscale_server.cli_export import replace_file
from fedscale_server.cli_submit import forecast, only_project
from fedscale_server.control import Control
from fedscale_server.desk import Desk
from fedscale_server.follow import conclude, problem_of
from fedscale_server.options import ProfileFolder, connect
from fedscale_server.packing import pack_folder
from fedscale_server.parcels import put


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
        folder = out or Path("runs", desk.run)
        with _going_on(desk.run, app, settings or ()):
            ended = later("fedscale.flower.lead:lead")(directory, desk, plan.clients.deadline)
            # At the end of a run the coordinator drops the replies: from then on nobody can make this model again.
            model = _keep(ended.outcome.arrays, folder / MODEL)
            desk.conclude(ended.reason, ended.metrics, model)
        detail = control.run(desk.run)
        record = RunRecord.from_json(detail.record)
        later("fedscale.report:write")(record, folder)
        later("fedscale.report:card_beside")(record, folder)
        raise typer.Exit(conclude(detail, problem_of(detail), as_json=json))


@contextmanager
def _going_on(run: str, app: Path, settings: Iterable[str]) -> Iterator[None]:
    """Say how to go on with a run, now and to whom something from outside stops."""
    command = shlex.join(["fedscale", "run", "lead", str(app), "--run", run, *(word for text in settings for word in ("--set", text))])
    console.note(f"leading run {run}; if this is interrupted, go on with: {command}")
    hint = f"the run waits for its leader; go on: {command}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None
    except OSError as error:
        raise ConfigError("the leader's files cannot be written", where=str(error.filename or ""), why=error.strerror or "", hint=hint) from None
    except FedscaleError as error:
        raise type(error)(error.what, where=error.where, why=error.why, hint=error.hint or hint) from None


def _packed(directory: Directory) -> bytes:
    return pack_folder(directory.path, module_of(directory))


def _submitted(control: Control, project: str, directory: Directory, plan: Plan) -> str:
    """A new run's id; what cannot be loaded here is known before there is a run that would wait for it."""
    later("fedscale.flower.lead:require_server")(directory)
    info = control.submit(project or only_project(control), plan.to_toml(), put(control, _packed(directory)), secrets.token_hex(16))
    return info.run


def _resumed(control: Control, run: str, plan: Plan) -> str:
    """The id of a run to go on with.

    Raises:
        Conflict: it was begun with other settings or other code, or is not for a leader.
    """
    detail = control.run(run)
    begun = Plan.from_toml(RunRecord.from_json(detail.record).plan_toml)
    if begun.strategy.name != plan.strategy.name:
        raise Conflict(f"run {detail.info.run} is led by the coordinator", hint=f"follow it: fedscale run watch {detail.info.run}")
    if begun.digest != plan.digest:
        what = "plan" if begun.strategy == plan.strategy else "app, or with other settings of it"
        raise Conflict(f"run {detail.info.run} was begun with another {what}", hint="give the same directory, as it was, and the same --set as then")
    return detail.info.run


def _keep(arrays: Any, path: Path) -> str:
    """Leave the strategy's model, where there is one; its SHA-256."""
    if not arrays:
        return ""
    content = later("safetensors.numpy:save")(dict(_whole(arrays)))
    replace_file(path, content)
    return digest_of(content)


def _whole(arrays: Any) -> Iterable[tuple[str, Any]]:
    """Arrays whose bytes lie one behind the other, as the format wants them."""
    return ((name, later("numpy:asarray")(array, order="C")) for name, array in arrays.items())
