"""``fedscale server open``: into the dashboard without a password, for whoever runs the coordinator."""

from __future__ import annotations

import time

from fedscale import console
from fedscale.cli.options import Json
from fedscale.web.links import LINK_SECONDS, answers, link
from fedscale_server.cli_start import DEFAULT_HOME, ServerHome


def open_(*, home: ServerHome = DEFAULT_HOME, json: Json = False) -> None:
    """Print a link that opens the dashboard once, for the operator."""
    address = link(home, time.time())
    answers(address, name="dashboard", start="fedscale server start")
    console.emit({"link": address, "seconds": LINK_SECONDS}, address, as_json=json)
    console.note(f"open it in a browser on this machine within {LINK_SECONDS / 60:.0f} minutes; it works once")
