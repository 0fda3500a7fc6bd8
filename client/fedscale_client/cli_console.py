"""``fedscale node console`` and ``open``: the site's own pages, on its own machine."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from fedscale import console as terminal
from fedscale.cli.lazy import later
from fedscale.cli.options import Json, at
from fedscale.web.links import LINK_SECONDS, answers, link
from fedscale_client.options import HOME, HomeFolder, opened

PORT = 8473
NAME, START = "console", "fedscale node console"


def console(
    *, home: HomeFolder = HOME, port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for any.")] = PORT, json: Json = False
) -> None:
    """Serve the site's own pages on this machine until told to stop."""
    node = opened(home)

    def ready(address: str) -> None:
        entrance = link(node.path, time.time())
        terminal.emit({"address": address, "link": entrance, "seconds": LINK_SECONDS}, entrance, as_json=json)
        terminal.note(f"open it in a browser on this machine within two minutes; another link: fedscale node open {at(home)}; Ctrl-C stops it")

    asyncio.run(later("fedscale_client.console.serve:run")(node, port, ready))


def open_(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Print a link that opens the site's console once."""
    address = link(opened(home).path, time.time(), name=NAME, hint=f"start it: {START} {at(home)}")
    answers(address, name=NAME, start=START)
    terminal.emit({"link": address, "seconds": LINK_SECONDS}, address, as_json=json)
