"""``fedscale run submit``: a job file and its folder become a run."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fedscale import bundle, console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json, Settings
from fedscale.errors import ConfigError
from fedscale.plan import Plan
from fedscale.privacy.dp import CAPS
from fedscale.report.units import data_size
from fedscale_server.control import Control
from fedscale_server.options import ProfileFolder, connect
from fedscale_server.packing import pack_folder, pack_job
from fedscale_server.parcels import put

TABLES = {".csv", ".tsv", ".parquet", ".xlsx", ".npy", ".npz", ".dcm", ".sav", ".dta", ".h5", ".sqlite"}
SHOWN = 3


def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The job file; its folder is the app that the sites run. Or a Flower app's directory.")],
    *,
    project: Annotated[str, typer.Option(help="The project; may be left out where there is only one.")] = "",
    settings: Settings = None,
    key: Annotated[str, typer.Option(help="Idempotency key: the same key never starts a second run.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Send a job to a project's sites."""
    plan, packed = _parcel(job, settings or ())
    if tables := _tables(packed):
        console.note(f"every site will be given {', '.join(tables)}: if these are data of a site, keep them out of the job's folder")
    with connect(profile) as control:
        chosen = project or only_project(control)
        if dry_run:
            data = forecast(control, chosen, plan, packed)
            console.emit(data, console.facts(_told(data, plan)), as_json=json)
            return
        waits = f", where {lacking}" if (lacking := waiting_for(control, chosen, plan)) else ""
        info = control.submit(chosen, plan.to_toml(), put(control, packed), key or secrets.token_hex(16))
        if watch:
            console.note(f"submitted {info.run} to project {info.project}{waits}")
            raise typer.Exit(later("fedscale_server.follow:follow")(control, info.run, as_json=json, as_lines=False))
    console.emit(asdict(info), info.run, as_json=json)
    console.note(f"submitted to project {info.project}{waits}; follow it: fedscale run watch {info.run}")


def _told(data: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A forecast for a person."""
    facts = {name: value for name, value in data.items() if name not in ("epsilon", "delta", "unit")}
    privacy = {"each site needs": f"{plan.privacy.need}; {CAPS}"} if plan.privacy else {"epsilon": None}
    clear = plan.privacy and plan.evaluate.every and not plan.secagg.enabled
    metrics = {"metrics": "leave each site as they are; a site with a cap keeps them back unless its owner lets them go"} if clear else {}
    return facts | privacy | metrics | {"bundle_bytes": data_size(data["bundle_bytes"])}


def _parcel(job: Path, settings: Iterable[str]) -> tuple[Plan, bytes]:
    """The plan and the bundle of a job file or of a Flower app's directory."""
    if not later("fedscale.flower.directory:is_app")(job):
        plan = Plan.load(job, settings)
        return plan, pack_job(job, plan)
    directory, plan = later("fedscale.flower.deployment:job_of")(job, settings)
    return plan, pack_folder(directory.path, later("fedscale.flower.deployment:module_of")(directory))


def _tables(packed: bytes) -> list[str]:
    """What in a bundle looks like data: the first few names."""
    names = [name for name in sorted(bundle.read(packed)) if Path(name).suffix.lower() in TABLES]
    return [*names[:SHOWN], *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])]


def only_project(control: Control) -> str:
    """The one project there is."""
    names = [project.name for project in control.projects()]
    if len(names) != 1:
        hint = f"one of: {', '.join(names)}" if names else "make one: fedscale project create NAME"
        raise ConfigError(f"there are {len(names)} projects, so the run's own must be named with --project", hint=hint)
    return names[0]


def waiting_for(control: Control, project: str, plan: Plan) -> str:
    """What a run would wait for, and what there is instead; empty where it begins at once."""
    nodes = [node for node in control.nodes(project) if node.connected]
    there = sum(plan.job.data in node.datasets for node in nodes)
    lacking = (plan.clients.wait_for or plan.clients.min_per_round) - there
    if lacking <= 0:
        return ""
    offered = ", ".join(sorted({name for node in nodes for name in node.datasets} - {plan.job.data}))
    others = f" (others offer {offered})" if offered else ""
    return f"it waits for {lacking} more node{'' if lacking == 1 else 's'} with dataset '{plan.job.data}'{others}"


def forecast(control: Control, project: str, plan: Plan, packed: bytes) -> dict[str, Any]:
    """What a run would be."""
    there = [site.name for site in control.nodes(project) if site.connected and plan.job.data in site.datasets]
    needed = plan.clients.wait_for or plan.clients.min_per_round
    return {
        "project": project,
        "job": plan.job.name,
        "strategy": plan.strategy.name,
        "rounds": plan.strategy.rounds,
        "nodes": there,
        "needed": needed,
        "starts": f"not yet: {lacking}" if (lacking := waiting_for(control, project, plan)) else "at once",
        "epsilon": plan.privacy.epsilon if plan.privacy else None,
        "delta": plan.privacy.delta if plan.privacy else None,
        "unit": plan.privacy.unit if plan.privacy else None,
        "plan_hash": plan.digest,
        "bundle": bundle.digest(packed),
        "bundle_bytes": len(packed),
        "files": sorted(bundle.read(packed)),
        "dry_run": True,
    }
