"""``fedscale server``: a coordinator's verbs, and how it does."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Group

from fedscale import console
from fedscale.cli.options import Json
from fedscale_server.cli_project import sites
from fedscale_server.options import ProfileFolder, connect, moment


def status(*, json: Json = False, profile: ProfileFolder = None) -> None:
    """Show the sites and the runs of a coordinator."""
    with connect(profile) as control:
        found = control.status()
    facts = {"coordinator": found.address, "enrolment": found.enrolment, "federation": found.federation, "version": found.version}
    if found.replicas:
        others = ", ".join(address for address in found.replicas if address != found.address)
        facts |= {"leads until": f"{moment(found.leads_until)} unless renewed, epoch {found.epoch}", "stand by": others or "none"}
    runs = [(r.run, r.project, r.status, f"{r.phase} {r.number}/{r.rounds}") for r in found.runs]
    parts = [
        console.facts(facts),
        sites(found.nodes) if found.nodes else "no sites yet; invite one: fedscale project invite PROJECT --name SITE",
        console.table(("run", "project", "status", "round"), runs) if runs else "no run is going on",
    ]
    console.emit(asdict(found), Group(*parts), as_json=json)
