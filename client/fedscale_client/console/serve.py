"""The console's process: loopback only, and only as long as somebody wants it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from fedscale import files
from fedscale.clock import Clock, SystemClock
from fedscale.errors import ConfigError
from fedscale.web import serving
from fedscale.web.links import FOLDER, Links, withdraw
from fedscale_client.console.app import build
from fedscale_client.console.desk import Desk
from fedscale_client.console.doorkeeper import Doorkeeper
from fedscale_client.home import NodeHome

HOST = "127.0.0.1"
OPENER = "fedscale node open"


async def run(home: NodeHome, port: int, on_ready: Callable[[str], None], *, clock: Clock | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        home: a home that has joined.
        port: where to listen on the loopback address; 0 for any.
        on_ready: told the address.
        clock: for links and logins.

    Raises:
        ConfigError: the port is taken.
    """
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await serve(home, port, on_ready, stopping, clock or SystemClock())
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def serve(home: NodeHome, port: int, on_ready: Callable[[str], None], stopping: asyncio.Event, clock: Clock) -> None:
    """Serve until ``stopping``; the arguments are those of ``run``."""
    try:
        listener = serving.listen(HOST, port)
    except OSError as error:
        raise ConfigError(f"the console cannot listen at {HOST}:{port}", why=error.strerror or "", hint="choose another: --port 0") from None
    with contextlib.closing(listener):
        address, links = f"http://{HOST}:{listener.getsockname()[1]}", Links(opener=OPENER)
        scrape = links.leave(files.private_folder(home.path / FOLDER), address, files.write)
        desk, doorkeeper = Desk(home), Doorkeeper(home.settings().name, links, clock.now)
        server = serving.server(build(desk, doorkeeper, scrape, stopping, OPENER))
        pages = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            on_ready(address)
            stopped = asyncio.create_task(stopping.wait())
            await asyncio.wait({pages, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
        finally:
            server.should_exit = True
            await pages
            withdraw(home.path)
