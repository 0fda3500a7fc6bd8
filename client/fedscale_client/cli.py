"""``fedscale node``: the verbs of a site, its datasets aside."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from fedscale import console
from fedscale.cli.doctor import FAULT, FINE, WARNING, Finding, certificates, disk, packages, tell
from fedscale.cli.lazy import later
from fedscale.cli.logs import LogFormat, configure
from fedscale.cli.options import DryRun, Json
from fedscale.errors import Conflict, FedscaleError
from fedscale.identity import Ticket
from fedscale_client.home import NodeHome
from fedscale_client.options import HOME, HomeFolder, opened

REACH_SECONDS = 5.0
WORRYING = frozenset({"disconnected", "failed", "not renewed", "datasets not read"})


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
    console.note(f"declare data: fedscale node data add NAME --path FILE.csv --label COLUMN --home {home}; then: fedscale node start --home {home}")


def start(*, home: HomeFolder = HOME, log: LogFormat = "text") -> None:
    """Take part until told to stop."""
    configure(log)
    joined = opened(home)
    asyncio.run(later("fedscale_client.node:run")(joined, on_event=_log))


def _log(facts: Mapping[str, Any]) -> None:
    """One line of the log for something that happened; signs of progress are for the coordinator."""
    import structlog

    told = dict(facts)
    event = str(told.pop("event"))
    told |= {name: str(value) for name, value in told.pop("failure", {}).items() if value}
    logger = structlog.get_logger()
    if event != "progress":
        (logger.warning if event in WORRYING else logger.info)(event, **told)


def status(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Show who this node is and what it offers."""
    node = opened(home)
    settings, until = node.settings(), node.credentials().expires()
    data = settings.model_dump(include={"name", "project", "federation", "address"})
    data |= {"home": str(home), "running": is_running(node), "valid_until": until.isoformat(), "datasets": _offers(node)}
    shown = data | {"running": "yes" if data["running"] else "no", "datasets": ", ".join(data["datasets"]) or "none"}
    console.emit(data, console.facts({name.replace("_", " "): value for name, value in shown.items()}), as_json=json)


def _offers(node: NodeHome) -> list[str]:
    """The names of the declared datasets."""
    return sorted(later("fedscale_client.datasets:listed")(node))


def is_running(node: NodeHome) -> bool:
    """Whether a process holds this home."""
    try:
        with node.locked():
            return False
    except Conflict:
        return True


def doctor(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Check this node: certificate, coordinator, datasets, room."""
    node = opened(home)
    findings = [*certificates(home, datetime.now(UTC)), _coordinator(node), *_datasets(node), disk(home)]
    tell([*findings, *(finding for finding in packages() if finding.name in {"grpc", "torch"})], as_json=json)


def _coordinator(node: NodeHome) -> Finding:
    """Whether the coordinator answers and takes this node's certificate."""
    import grpc

    settings, credentials = node.settings(), node.credentials()
    secure = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
    override = [("grpc.ssl_target_name_override", settings.server_name)] if settings.server_name else []
    with grpc.secure_channel(settings.address, secure, override) as channel:
        try:
            grpc.channel_ready_future(channel).result(REACH_SECONDS)
        except grpc.FutureTimeoutError:
            hint = "check the address, the network and the firewall; only an outbound connection to that port is needed"
            return Finding("coordinator", FAULT, f"no answer from {settings.address} within {REACH_SECONDS:g} s", hint)
    return Finding("coordinator", FINE, f"{settings.address} answers")


def _datasets(node: NodeHome) -> Iterator[Finding]:
    """Whether each declared dataset can be read and trained on."""
    offered = _offers(node)
    if not offered:
        yield Finding("datasets", WARNING, "none is declared", "declare one: fedscale node data add NAME --path FILE.csv --label COLUMN")
    for name in offered:
        try:
            problems = later("fedscale_client.datasets:check")(node, name)
        except FedscaleError as error:
            yield Finding(f"dataset {name}", FAULT, str(error), error.hint)
        else:
            yield Finding(f"dataset {name}", WARNING if problems else FINE, "; ".join(problems) or "can be trained on")
