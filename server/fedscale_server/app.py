"""The only wiring of the server: settings and a home in, a running coordinator out."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog

from fedscale.clock import Clock, SystemClock
from fedscale.errors import ConfigError
from fedscale.proto.v1 import control_pb2_grpc, node_pb2_grpc
from fedscale.secagg.authority import RosterAuthority
from fedscale.sinks import chosen
from fedscale.wire.limits import SERVER_OPTIONS
from fedscale_server.certificates import Certificates
from fedscale_server.coordinator import Coordinator
from fedscale_server.curves import Curves
from fedscale_server.deeds import Deed
from fedscale_server.engine import Engine
from fedscale_server.home import Home
from fedscale_server.leadership import Leadership, Place
from fedscale_server.registry import Registry
from fedscale_server.services.bulk import BulkService
from fedscale_server.services.control import ControlService
from fedscale_server.services.enrolment import EnrolmentService
from fedscale_server.services.guard import Guard
from fedscale_server.services.node import NodeService
from fedscale_server.sessions import Sessions
from fedscale_server.settings import Settings
from fedscale_server.spool import Keeping
from fedscale_server.store.blobs import Blobs
from fedscale_server.store.depot import Shelf, depot_of
from fedscale_server.store.leases import STANDBY
from fedscale_server.store.store import Store
from fedscale_server.trail import Trail
from fedscale_server.web.serve import dashboard, open_door

log = structlog.get_logger()
GRACE_SECONDS = 1.0
# Who has no certificate yet gets gRPC's own small limit on metadata; the large one is for the schemas of members' models.
DOOR_OPTIONS = tuple((name, value) for name, value in SERVER_OPTIONS if "metadata" not in name)


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a started server listens; ``dashboard`` is a URL, empty where there is none."""

    address: str
    enrolment: str
    dashboard: str = ""


async def serve(path: Path, settings: Settings, on_ready: Callable[[Ready], None], clock: Clock | None = None) -> None:
    """Run a coordinator until it is told to stop by SIGTERM, SIGINT or cancellation.

    Every port speaks TLS; there is no way to open one without.

    Args:
        path: the server's home.
        settings: what ``server.toml`` says.
        on_ready: called once when all ports are open.
        clock: for tests.

    Raises:
        ConfigError: a port is taken, or the home cannot be used.
    """
    clock = clock or SystemClock()
    home = Home.load(path)
    with home.locked() as token:
        home.refresh(settings, clock.now())
        store = await asyncio.to_thread(Store.open, settings.url(path))
        try:
            leadership = Leadership(store, clock, token, settings.lease_seconds if settings.replicas else float("inf"), home.tell)
            await _serve(home, settings, on_ready, clock, leadership, store)
        finally:
            store.close()


async def _serve(home: Home, settings: Settings, on_ready: Callable[[Ready], None], clock: Clock, leadership: Leadership, store: Store) -> None:
    """The life of a coordinator whose home and database are open."""
    engine, registry = _engine(store, home, settings, clock), Registry(store, home.authority, clock)
    main = grpc.aio.server(interceptors=[Guard(registry, leadership.check)], options=SERVER_OPTIONS)
    doors = grpc.aio.server(interceptors=[Guard(None, leadership.check)], options=DOOR_OPTIONS)
    certificates = Certificates(home)
    settings = _open_ports(main, doors, certificates, settings)
    # A port of 0 was the system's choice; from here on it is a fact that the operator's profile must know.
    home.refresh(settings, clock.now())
    coordinator = _add_services(main, doors, engine, registry, leadership, Trail(home.path, clock.now, _logged), settings)
    door = open_door(settings)
    await leadership.begin(Place(settings.address, settings.enrolment_address), partial(_rise, engine, registry), engine.rest)
    renewing = asyncio.create_task(certificates.keep(settings, clock))
    async with dashboard(door, coordinator, home.path, settings):
        try:
            await asyncio.gather(main.start(), doors.start())
            _announce(on_ready, Ready(settings.address, settings.enrolment_address, door.address if door else ""))
            await _first(_told_to_stop(), leadership.failed())
        finally:
            renewing.cancel()
            await _wind_down(main, doors, engine)
            await leadership.end()


async def _rise(engine: Engine, registry: Registry) -> None:
    """Begin to lead: with what is stored now, whoever stored it."""
    await asyncio.to_thread(registry.open)
    await engine.start()


def _engine(store: Store, home: Home, settings: Settings, clock: Clock) -> Engine:
    """The runs; of several replicas whichever leads goes on with the rounds that the last one has left open."""
    depot = depot_of(settings.blobs, settings.blobs_endpoint)
    engine = Engine(
        store,
        Blobs(home.path / "bundles", Shelf(depot, "bundles", STANDBY) if depot else None),
        home.path / "runs",
        Sessions(),
        clock,
        keeping=Keeping.NOWHERE if settings.durability == "resend" else Keeping.COMMON if settings.replicas else Keeping.HERE,
        rosters=RosterAuthority.of(home.authority.key),
        depot=depot,
    )
    if settings.sinks:
        engine.curves = Curves(chosen(settings.sinks, settings.mlflow_uri), home.path / "curves")
    return engine


async def _first(*ends: Coroutine[Any, Any, None]) -> None:
    """Wait for the first of several ends, and raise what it raised."""
    tasks = [asyncio.create_task(end) for end in ends]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def _announce(on_ready: Callable[[Ready], None], ready: Ready) -> None:
    """Tell whoever started the server, and the log."""
    on_ready(ready)
    log.info("server ready", address=ready.address, enrolment=ready.enrolment, dashboard=ready.dashboard)


def _logged(deed: Deed) -> None:
    """Show a line of the audit trail in the log too, which often lies where whoever would edit the trail does not get at it."""
    log.info("audit", who=deed.who, door=deed.door, action=deed.action, target=deed.target, head=f"{deed.seq}:{deed.digest}")


async def _wind_down(main: grpc.aio.Server, doors: grpc.aio.Server, engine: Engine) -> None:
    """Let everybody go, and finish the steps that are under way."""
    engine.stop()
    await asyncio.gather(main.stop(GRACE_SECONDS), doors.stop(GRACE_SECONDS))
    await engine.settled()


def _open_ports(main: grpc.aio.Server, doors: grpc.aio.Server, certificates: Certificates, settings: Settings) -> Settings:
    """Open both ports; returns the settings with the ports that were taken."""
    port = _bind(main, settings.host, settings.port, certificates.credentials(members=True), "--port")
    enrolment_port = _bind(doors, settings.host, settings.enrolment_port, certificates.credentials(members=False), "--enrolment-port")
    return settings.model_copy(update={"port": port, "enrolment_port": enrolment_port})


def _add_services(
    main: grpc.aio.Server, doors: grpc.aio.Server, engine: Engine, registry: Registry, leadership: Leadership, trail: Trail, settings: Settings
) -> Coordinator:
    """Members' services on the mTLS port, enrolment on its own; returns what the dashboard asks too."""
    coordinator = Coordinator(engine, registry, settings.federation, settings.address, settings.enrolment_address, leadership, trail)
    node_pb2_grpc.add_NodeServicer_to_server(NodeService(engine, registry, leadership), main)
    control_pb2_grpc.add_ControlServicer_to_server(ControlService(coordinator), main)
    main.add_generic_rpc_handlers((BulkService(engine, registry, settings.uploads_at_once, settings.upload_bytes, trail).handler(),))
    node_pb2_grpc.add_EnrolmentServicer_to_server(EnrolmentService(registry, settings.address, leadership, trail), doors)
    return coordinator


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials, option: str) -> int:
    """Open a port, which people choose by an option; returns its number."""
    shown = f"[{host}]" if _is_ipv6(host) else host
    try:
        taken = server.add_secure_port(f"{shown}:{port}", credentials)
    except RuntimeError:
        taken = 0
    if not taken:
        why = "the port is taken or the address is not this machine's"
        raise ConfigError(f"cannot listen on {shown}:{port}", why=why, hint=f"choose another with {option}")
    return int(taken)


def _is_ipv6(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).version == 6
    return False


async def _told_to_stop() -> None:
    """Wait for a signal to stop."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only the main thread may set handlers; elsewhere, as in tests, cancellation ends the server.
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, told.set)
    await told.wait()
