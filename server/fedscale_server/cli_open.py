"""``fedscale server open``: into the dashboard without a password, for whoever runs the coordinator."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

from fedscale import console
from fedscale.cli.options import Json
from fedscale.errors import Unreachable
from fedscale_server.cli_start import DEFAULT_HOME, ServerHome
from fedscale_server.web.links import LINK_SECONDS, link

PATIENCE = 3.0


def open_(*, home: ServerHome = DEFAULT_HOME, json: Json = False) -> None:
    """Print a link that opens the dashboard once, for the operator."""
    address = link(home, time.time())
    _answers(address)
    console.emit({"link": address, "seconds": LINK_SECONDS}, address, as_json=json)
    console.note(f"open it in a browser on this machine within {LINK_SECONDS / 60:.0f} minutes; it works once")


def _answers(address: str) -> None:
    """Refuse to hand out a link to a coordinator that was killed.

    Raises:
        Unreachable: nothing listens there.
    """
    place = urlsplit(address)
    try:
        socket.create_connection((place.hostname or "", place.port or 0), PATIENCE).close()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Unreachable("the dashboard does not answer", where=place.netloc, why=why, hint="is it running? fedscale server start") from None
