"""``fedscale project``: projects, their sites and the tickets to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.table import Table

from fedscale import console
from fedscale.cli.options import DryRun, Json
from fedscale.errors import Conflict, NotFound
from fedscale_server.answers import Site
from fedscale_server.control import Control
from fedscale_server.options import ProfileFolder, connect, moment

DAY = 86_400.0


def create(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, dots, dashes and underscores.")],
    *,
    dry_run: DryRun = False,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Make a project."""
    with connect(profile) as control:
        if dry_run:
            if name in {project.name for project in control.projects()}:
                raise Conflict(f"project '{name}' exists already")
            console.emit({"name": name, "dry_run": True}, f"would make project {name}", as_json=json)
            return
        made = control.create_project(name)
    console.emit(asdict(made), f"made project {made.name}", as_json=json)
    console.note(f"invite its sites, one ticket each: fedscale project invite {made.name} --name SITE")


def list_(*, json: Json = False, profile: ProfileFolder = None) -> None:
    """List the projects."""
    with connect(profile) as control:
        found = control.projects()
    shown = console.table(("project", ">nodes", ">runs"), [(p.name, p.nodes, p.runs) for p in found])
    console.emit([asdict(p) for p in found], shown if found else "no projects yet; make one: fedscale project create NAME", as_json=json)


def invite(
    project: Annotated[str, typer.Argument(help="The project.")],
    *,
    name: Annotated[str, typer.Option(help="Fix the name the site will have; without it the site chooses.")] = "",
    role: Annotated[Literal["node", "researcher", "auditor", "coordinator"], typer.Option(help="What its holder will be.")] = "node",
    days: Annotated[float, typer.Option(min=0.001, max=30, help="How long the ticket can be used.")] = 7.0,
    dry_run: DryRun = False,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Print a one-time ticket for a site."""
    with connect(profile) as control:
        if dry_run:
            _known(control, project)
            data = {"project": project, "name": name, "role": role, "days": days, "dry_run": True}
            console.emit(data, f"would print a ticket to project {project} for {name or 'a site that chooses its name'}", as_json=json)
            return
        made = control.invite(project, name, days * DAY, role)
    console.emit(asdict(made) | {"project": project, "name": name, "role": role}, made.ticket, as_json=json)
    console.note(f"valid once, until {moment(made.expires_at)}; hand it over by a channel you trust. There: fedscale node join TICKET")


def _known(control: Control, project: str) -> None:
    """Refuse a project that does not exist."""
    names = [found.name for found in control.projects()]
    if project not in names:
        raise NotFound(f"no project '{project}'", hint=console.closest(project, names))


def nodes(
    project: Annotated[str, typer.Argument(help="The project; without it, all of them.")] = "",
    *,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """List the sites of a project, or of all."""
    with connect(profile) as control:
        found = control.nodes(project)
    nobody = "no sites yet; invite one: fedscale project invite PROJECT --name SITE"
    console.emit([asdict(site) for site in found], sites(found) if found else nobody, as_json=json)


def sites(found: Sequence[Site]) -> Table:
    """Sites as a table."""
    rows = [(s.name, s.project, _state(s), ", ".join(s.datasets) or "none", moment(s.last_seen), s.version) for s in found]
    return console.table(("site", "project", "state", "datasets", "last seen", "version"), rows)


def _state(site: Site) -> str:
    return "revoked" if site.revoked else "connected" if site.connected else "away"


def revoke(
    name: Annotated[str, typer.Argument(help="The site's name.")], *, dry_run: DryRun = False, json: Json = False, profile: ProfileFolder = None
) -> None:
    """Shut a site out at once."""
    with connect(profile) as control:
        if dry_run:
            names = [site.name for site in control.nodes("") if not site.revoked]
            if name not in names:
                raise NotFound(f"no site '{name}' that is not revoked already", hint=console.closest(name, names))
        else:
            control.revoke(name)
    console.emit({"name": name, "dry_run": dry_run}, f"would shut out {name}" if dry_run else f"{name} is shut out", as_json=json)
