"""``fedscale run``: what happens to runs, and what they left."""

from __future__ import annotations

import json as json_
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer
from rich.console import Group

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json
from fedscale.errors import Conflict
from fedscale.record import RoundRecord, RunRecord
from fedscale.report.units import number
from fedscale_server.answers import Detail
from fedscale_server.control import OVER, Control
from fedscale_server.follow import follow, shown
from fedscale_server.left import coordinator, coordinator_of, detail_in, detail_of, folder_of, left_in, runs_in
from fedscale_server.options import ProfileFolder, RunId, RunOrFolder, moment

REASON_LETTERS = 80


def list_(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="List the runs that left something here, such as simulations in runs.")
    ] = None,
    *,
    project: Annotated[str, typer.Option(help="Only the runs of this project.")] = "",
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """List the runs, newest first."""
    if folder is not None:
        found, none = runs_in(folder), f"no run has left anything in {folder}; simulate one: fedscale simulate job.toml"
    else:
        with coordinator(profile, "what simulations left is listed by: fedscale run list runs" if Path("runs").is_dir() else "") as control:
            found, none = control.runs(project), "no runs yet; submit one: fedscale run submit job.toml"
    rows = [
        (
            r.run,
            r.project or r.name,
            r.status,
            f"{r.number}/{r.rounds}" if r.number else "",
            moment(r.created) if r.created else "",
            shorten(r.reason, REASON_LETTERS),
        )
        for r in found
    ]
    table = console.table(("run", "project", "status", ">round", "begun", "reason"), rows)
    cut = any(len(r.reason) > REASON_LETTERS for r in found)
    text = Group(table, console.text("a reason as a whole: fedscale run show RUN")) if cut else table
    console.emit([asdict(run) for run in found], text if found else none, as_json=json)


def show(run: RunOrFolder, *, json: Json = False, profile: ProfileFolder = None) -> None:
    """Show where a run stands and what each site contributed."""
    folder = folder_of(run)
    if folder is not None:
        detail, waiting = detail_in(folder), ""
    else:
        with coordinator_of(run, profile) as control:
            detail = control.run(run)
            waiting = _waiting(control, detail)
    record = RunRecord.from_json(detail.record)
    parts = [console.table(("round", "phase", ">nodes", ">failures", "metrics"), [_round(row) for row in record.rounds]), shown(detail)]
    data = {"run": asdict(detail.info), "record": json_.loads(detail.record), "model": detail.model, "waiting": waiting}
    console.emit(data, Group(*parts, *(console.text(said) for said in (detail.info.reason, waiting) if said)), as_json=json)


def _waiting(control: Control, detail: Detail) -> str:
    """What a run that has not begun waits for; empty where it has, or is over."""
    record = RunRecord.from_json(detail.record)
    if detail.info.status in OVER or record.rounds:
        return ""
    plan = later("fedscale.plan:Plan").from_toml(record.plan_toml)
    return str(later("fedscale_server.cli_submit:waiting_for")(control, detail.info.project, plan))


def _round(row: RoundRecord) -> Sequence[object]:
    values = ", ".join(f"{name} {number(value)}" for name, value in row.metrics.items())
    return row.number, row.phase, len(row.answered), len(row.failures) or "", values


def watch(
    run: RunId,
    *,
    after: Annotated[int, typer.Option(min=0, help="Begin behind the event of this number.")] = 0,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print every event as a line of JSON.")] = False,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Follow a run until it ends; exit code 1 when it failed."""
    with coordinator_of(run, profile) as control:
        if not jsonl and (waiting := _waiting(control, control.run(run))):
            console.note(f"run {run} has not begun: {waiting}")
        raise typer.Exit(follow(control, run, as_json=json, as_lines=jsonl, after=after))


def stop(
    run: RunId,
    *,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    dry_run: DryRun = False,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """End a run now; its last model is kept."""
    _steer(run, "stop", reason, dry_run=dry_run, as_json=json, profile=profile)


def pause(run: RunId, *, dry_run: DryRun = False, json: Json = False, profile: ProfileFolder = None) -> None:
    """Begin no further round until the run is resumed."""
    _steer(run, "pause", "", dry_run=dry_run, as_json=json, profile=profile)


def resume(run: RunId, *, dry_run: DryRun = False, json: Json = False, profile: ProfileFolder = None) -> None:
    """Go on with a paused run."""
    _steer(run, "resume", "", dry_run=dry_run, as_json=json, profile=profile)


def _steer(run: str, action: str, reason: str, *, dry_run: bool, as_json: bool, profile: Path | None) -> None:
    """Ask for an action on a run and say how it stands then."""
    with coordinator_of(run, profile) as control:
        info = control.run(run).info if dry_run else control.steer(run, action, reason)
    if dry_run and info.status in OVER:
        raise Conflict(f"run {info.run} is {info.status} already")
    text = f"would {action} run {info.run}, which is {info.status}" if dry_run else f"run {info.run} is {info.status}"
    console.emit(asdict(info) | {"dry_run": dry_run}, text, as_json=as_json)


def report(
    run: RunOrFolder,
    *,
    out: Annotated[Path | None, typer.Option(help="The folder; runs/RUN by default, or the folder itself.")] = None,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Write a run's report, metrics and summary into a folder."""
    detail = detail_of(run, profile)
    files = later("fedscale.report:write")(RunRecord.from_json(detail.record), out or left_in(run))
    console.emit({name: str(path) for name, path in files.items()}, "\n".join(str(path) for path in files.values()), as_json=json)
