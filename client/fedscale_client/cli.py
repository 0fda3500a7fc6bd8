"""``fedscale node``: how a site joins, and how it does."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json, at
from fedscale.identity import Ticket
from fedscale_client import facts
from fedscale_client.home import NodeHome
from fedscale_client.options import HOME, HomeFolder, opened


def join(
    ticket: Annotated[str, typer.Argument(help="The ticket, as you received it; '-' reads it from stdin.")],
    *,
    home: HomeFolder = HOME,
    name: Annotated[str | None, typer.Option(help="What this site wishes to be called.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to wait for the coordinator.")] = 30.0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Join a federation with a ticket from its coordinator."""
    text = sys.stdin.read() if ticket == "-" else ticket
    if dry_run:
        address = Ticket.parse(text).address
        console.emit({"address": address, "home": str(home), "dry_run": True}, f"would join at {address} and keep the key in {home}", as_json=json)
        return
    settings = later("fedscale_client.join:join")(text, home, name, timeout).settings()
    data = settings.model_dump(include={"name", "project", "federation", "address"}) | {"home": str(home)}
    console.emit(data, f"joined project {settings.project} of {settings.federation} as {settings.name}", as_json=json)
    console.note(f"declare data: fedscale node data add NAME --path FILE.csv --label COLUMN {at(home)}; then: fedscale node start {at(home)}")


def status(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Show who this node is and what it offers."""
    data = facts.status(opened(home))
    console.emit(data, console.facts({name.replace("_", " "): value for name, value in data.items()}), as_json=json)


def pause(*, home: HomeFolder = HOME, dry_run: DryRun = False, json: Json = False) -> None:
    """Let no task begin and no answer leave until the site goes on."""
    _pause(opened(home), paused=True, dry_run=dry_run, as_json=json)


def resume(*, home: HomeFolder = HOME, dry_run: DryRun = False, json: Json = False) -> None:
    """Take part again after a pause."""
    _pause(opened(home), paused=False, dry_run=dry_run, as_json=json)


def _pause(node: NodeHome, *, paused: bool, dry_run: bool, as_json: bool) -> None:
    if not dry_run:
        facts.pause(node, paused=paused)
    text = "this site is paused: nothing leaves" if paused else "this site takes part again"
    text = f"would tell the node: {text}" if dry_run else text
    console.emit({"paused": paused, "dry_run": dry_run}, text, as_json=as_json)
