"""One-time login links for whoever can read the server's home, and what a running dashboard leaves there.

::

    web/key       signs links; another one at each start, so that links die with the server they were made for
    web/address   where the dashboard is, as a URL
    web/scrape    what Prometheus proves itself with at /metrics

Whoever can read the home can name anybody, by the authority's key; a link gives no more than that.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from fedscale.errors import ConfigError, TicketError
from fedscale_server import files

FOLDER = "web"
KEY, ADDRESS, SCRAPE = "key", "address", "scrape"
LINK_SECONDS = 120.0


def mint(key: str, now: float) -> str:
    """A token that opens the dashboard once, within two minutes.

    Args:
        key: what the server signs with.
        now: seconds since the epoch.
    """
    body = f"{now + LINK_SECONDS:.0f}.{secrets.token_urlsafe(12)}"
    return f"{body}.{_signed(key, body)}"


def link(home: Path, now: float) -> str:
    """A login link to the dashboard that runs in a server's home; what proves anything stands behind ``#`` and is sent to nobody.

    Raises:
        ConfigError: no dashboard runs there.
    """
    folder = home / FOLDER
    try:
        address, key = ((folder / name).read_text(encoding="ascii").strip() for name in (ADDRESS, KEY))
    except OSError:
        hint = "start it: fedscale server start; in server.toml, web must be true"
        raise ConfigError("no dashboard runs here", where=str(home), hint=hint) from None
    return f"{address}/login#{mint(key, now)}"


def _signed(key: str, body: str) -> str:
    return hmac.new(key.encode(), body.encode(), "sha256").hexdigest()


@dataclass(slots=True)
class Links:
    """The links of one running server.

    Args:
        key: what they are signed with.
    """

    key: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _used: dict[str, float] = field(default_factory=dict)

    def redeem(self, token: str, now: float) -> None:
        """Use a link up.

        Raises:
            TicketError: not one of this server, expired, or used before.
        """
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(_signed(self.key, body).encode(), signature.encode()):
            raise TicketError("the link is not of this server", hint="make another: fedscale server open")
        until = float(body.partition(".")[0])
        self._used = {used: end for used, end in self._used.items() if end > now}
        if until <= now or body in self._used:
            raise TicketError("the link was used before or has expired", hint="make another: fedscale server open")
        self._used[body] = until

    def leave(self, home: Path, address: str) -> str:
        """Write down what ``link`` and Prometheus need; returns the token for ``/metrics``."""
        folder = files.private_folder(home / FOLDER)
        scrape = folder / SCRAPE
        if not scrape.exists():
            files.write(scrape, secrets.token_urlsafe(32).encode())
        files.write(folder / KEY, self.key.encode())
        files.write(folder / ADDRESS, address.encode())
        return scrape.read_text(encoding="ascii")


def withdraw(home: Path) -> None:
    """The dashboard is closed: its links lead nowhere."""
    for name in (KEY, ADDRESS):
        (home / FOLDER / name).unlink(missing_ok=True)
