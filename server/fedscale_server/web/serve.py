"""The dashboard's port, beside gRPC in the same event loop.

The port is opened at once, which costs nothing; FastAPI and the pages are loaded behind it in a thread, while the
coordinator works already. Whoever connects in between waits in the port's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from fedscale import files
from fedscale.cli.lazy import later
from fedscale.errors import ConfigError
from fedscale.web import serving
from fedscale.web.links import FOLDER, Links, withdraw
from fedscale_server.home import CERTIFICATE, KEY

if TYPE_CHECKING:
    from fedscale_server.coordinator import Coordinator
    from fedscale_server.settings import Settings

log = structlog.get_logger()
RENEW_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Door:
    """An open port for browsers, and the URL that leads there."""

    listener: socket.socket
    address: str
    tls: bool


def open_door(settings: Settings) -> Door | None:
    """Open the dashboard's port; ``None`` where the settings want no dashboard.

    A taken port is no reason to keep a federation waiting: any other is used, and the log says so.

    Raises:
        ConfigError: the address is not this machine's.
    """
    if not settings.web:
        return None
    try:
        listener = serving.listen(settings.web_host, settings.web_port)
    except OSError:
        try:
            listener = serving.listen(settings.web_host, 0)
        except OSError as error:
            hint = "set web_host to an address of this machine"
            raise ConfigError(f"the dashboard cannot listen at {settings.web_host}", why=error.strerror or "", hint=hint) from None
        log.warning("the dashboard's port is taken, another is used", wanted=settings.web_port)
    tls = not serving.is_loopback(settings.web_host)
    host = settings.hosts[0] if _is_any(settings.web_host) else settings.web_host
    shown = f"[{host}]" if ":" in host else host
    return Door(listener, f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}", tls)


@contextlib.asynccontextmanager
async def dashboard(door: Door | None, coordinator: Coordinator, home: Path, settings: Settings) -> AsyncIterator[None]:
    """Serve the dashboard as long as the block runs.

    Args:
        door: the open port, or ``None`` for no dashboard.
        coordinator: does all that is asked.
        home: where its links are left, and its certificate lies.
        settings: the server's.
    """
    if door is None:
        yield
        return
    gone, links = asyncio.Event(), Links()
    scrape = await asyncio.to_thread(lambda: links.leave(files.private_folder(home / FOLDER), door.address, files.write))

    def built(build: Any, terms: Any) -> Any:
        return build(coordinator, links, terms(_names(settings), scrape, door.tls), gone)

    task = asyncio.create_task(_serve(door, home, gone, built))
    task.add_done_callback(_complain)
    try:
        yield
    finally:
        gone.set()
        await asyncio.wait({task})
        door.listener.close()
        withdraw(home)


async def _serve(door: Door, home: Path, gone: asyncio.Event, built: Callable[[Any, Any], Any]) -> None:
    """Load the pages and serve them until ``gone``; ``built`` makes the application of what was loaded."""
    loaded = await asyncio.to_thread(lambda: (later("fedscale_server.web.site:build"), later("fedscale_server.web.site:Terms")))
    server = await asyncio.to_thread(_server, built(*loaded), door, home)
    serving = asyncio.create_task(server.serve(sockets=[door.listener]))
    stopped = asyncio.create_task(gone.wait())
    while not (await asyncio.wait({serving, stopped}, timeout=RENEW_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
        if door.tls:  # the certificate may have been renewed; connections from now on see the new one
            _load_certificate(server.config.ssl, home)
    server.should_exit = True
    stopped.cancel()
    await serving


def _complain(task: asyncio.Task[None]) -> None:
    """A dashboard that cannot be served is no reason to end a federation, but nobody shall have to guess why."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the dashboard is closed", error=type(error).__name__, why=str(error))


def _server(app: Any, door: Door, home: Path) -> Any:
    """A server for the pages, over TLS where the door wants it."""
    made = serving.server(app)
    if door.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load_certificate(context, home)
        made.config.ssl = context
    return made


def _load_certificate(context: ssl.SSLContext, home: Path) -> None:
    """Prove to browsers what the server proves to its members."""
    context.load_cert_chain(home / "server" / CERTIFICATE, home / "server" / KEY)


def _names(settings: Settings) -> tuple[str, ...]:
    """Host names that browsers may ask for."""
    return ("localhost", "127.0.0.1", "::1", settings.web_host, *settings.hosts)


def _is_any(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return False
