"""``fedscale server init`` and ``start``: a coordinator's home and its process."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.logs import LogFormat, configure
from fedscale.cli.options import DryRun, Json, at
from fedscale.errors import Conflict
from fedscale.heap import share_one_heap
from fedscale_server.home import Home, closing, exposed, load_authority
from fedscale_server.room import make_room
from fedscale_server.settings import load

if TYPE_CHECKING:
    from fedscale_server.app import Ready

ServerHome: TypeAlias = Annotated[Path, typer.Option("--home", envvar="FEDSCALE_SERVER_HOME", help="The coordinator's folder.")]
Database: TypeAlias = Annotated[str | None, typer.Option(envvar="FEDSCALE_DATABASE", help="URL of the database; better in the environment.")]
WebPort: TypeAlias = Annotated[int | None, typer.Option(help="Port of the dashboard.")]
DEFAULT_HOME = Path("fedscale-server")


def init(
    *,
    home: ServerHome = DEFAULT_HOME,
    federation: Annotated[str | None, typer.Option(help="Name of the federation; cannot change later.")] = None,
    hosts: Annotated[list[str] | None, typer.Option("--hosts", help="Name or address that sites reach it by; may be repeated.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for members.")] = None,
    enrolment_port: Annotated[int | None, typer.Option(help="Port for those who have only a ticket.")] = None,
    web_port: WebPort = None,
    authority: Annotated[Path | None, typer.Option(help="Folder 'ca' of another coordinator, of which this becomes a replica.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a coordinator's home: authority, certificates, settings."""
    shared = load_authority(authority) if authority else None
    federation = federation or (shared.federation if shared else None)
    given = {"federation": federation, "hosts": hosts or None, "host": host, "port": port, "enrolment_port": enrolment_port}
    settings = load(home, given | {"web_port": web_port})
    profile = home / "admin"
    if dry_run and (home / "ca").exists():
        raise Conflict("there is a server here already", where=str(home))
    if not dry_run:
        profile = Home.create(home, settings, datetime.now(UTC), shared).profile
    data = {"home": str(home), "profile": str(profile), "federation": settings.federation, "address": settings.address}
    data |= {"enrolment": settings.enrolment_address}
    console.emit(data | {"dry_run": dry_run}, f"would make a coordinator in {home}" if dry_run else f"made a coordinator in {home}", as_json=json)
    if not dry_run:
        console.note(f"start it: fedscale server start {at(home)}; whoever has {home / 'ca'} can name anybody, so back it up and guard it")


def start(
    *,
    home: ServerHome = DEFAULT_HOME,
    host: Annotated[str | None, typer.Option(help="Address to listen at, in place of the one in server.toml.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for members.")] = None,
    enrolment_port: Annotated[int | None, typer.Option(help="Port for those who have only a ticket.")] = None,
    web_port: WebPort = None,
    web: Annotated[bool | None, typer.Option("--web/--no-web", help="Serve the dashboard, or do not.")] = None,
    database: Database = None,
    log: LogFormat = "text",
    json: Json = False,
) -> None:
    """Serve until told to stop."""
    configure(log)
    ports = {"port": port, "enrolment_port": enrolment_port, "web_port": web_port}
    settings = load(home, {"host": host, "database": database, "web": web, **ports})

    def ready(where: Ready) -> None:
        data = asdict(where) | {"home": str(home), "pid": os.getpid()}
        console.emit(data, f"coordinator ready: sites and people at {where.address}, tickets at {where.enrolment}; Ctrl-C stops it", as_json=json)
        if where.dashboard:
            console.note(f"dashboard at {where.dashboard}; log in with: fedscale server open {at(home)}")

    share_one_heap()
    if warning := make_room():
        console.note(warning)
    if path := exposed(home):
        console.note(f"others on this machine can read {path}; let only its owner in: {closing(home)}")
    asyncio.run(later("fedscale_server.app:serve")(home, settings, ready))
    console.note("the coordinator has stopped; runs go on where they are when it is started again")
