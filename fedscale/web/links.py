"""One-time login links for whoever can read a home, and what running pages leave there.

::

    web/key       signs links; another one at each start, so that links die with the process they were made for
    web/address   where the pages are, as a URL
    web/scrape    what Prometheus proves itself with at /metrics

Whoever can read a home holds its keys already; a link gives no more than that.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fedscale.errors import ConfigError, TicketError, Unreachable

FOLDER = "web"
KEY, ADDRESS, SCRAPE = "key", "address", "scrape"
LINK_SECONDS = 120.0
PATIENCE = 3.0


def mint(key: str, now: float) -> str:
    """A token that opens the pages once, within two minutes.

    Args:
        key: what the process signs with.
        now: seconds since the epoch.
    """
    body = f"{now + LINK_SECONDS:.0f}.{secrets.token_urlsafe(12)}"
    return f"{body}.{_signed(key, body)}"


def link(home: Path, now: float, *, name: str = "dashboard", hint: str = "start it: fedscale server start; in server.toml, web must be true") -> str:
    """A login link to the pages that are served from a home; what proves anything stands behind ``#`` and is sent to nobody.

    Args:
        home: the folder.
        now: seconds since the epoch.
        name: what the pages are called.
        hint: how they are started.

    Raises:
        ConfigError: none are.
    """
    folder = home / FOLDER
    try:
        address, key = ((folder / file).read_text(encoding="ascii").strip() for file in (ADDRESS, KEY))
    except OSError:
        raise ConfigError(f"no {name} runs here", where=str(home), hint=hint) from None
    return f"{address}/login#{mint(key, now)}"


def answers(address: str, *, name: str, start: str) -> None:
    """Refuse to hand out a link to a process that was killed.

    Args:
        address: the link.
        name: what the pages are called.
        start: the command that starts them.

    Raises:
        Unreachable: nothing listens there.
    """
    place = urlsplit(address)
    try:
        socket.create_connection((place.hostname or "", place.port or 0), PATIENCE).close()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Unreachable(f"the {name} does not answer", where=place.netloc, why=why, hint=f"is it running? {start}") from None


def _signed(key: str, body: str) -> str:
    return hmac.new(key.encode(), body.encode(), "sha256").hexdigest()


@dataclass(slots=True)
class Links:
    """The links of one running process.

    Args:
        key: what they are signed with.
        opener: the command that makes one.
    """

    key: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    opener: str = "fedscale server open"
    _used: dict[str, float] = field(default_factory=dict)

    def redeem(self, token: str, now: float) -> None:
        """Use a link up.

        Raises:
            TicketError: not one of this process, expired, or used before.
        """
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(_signed(self.key, body).encode(), signature.encode()):
            raise TicketError("the link is not of this server", hint=f"make another: {self.opener}")
        until = float(body.partition(".")[0])
        self._used = {used: end for used, end in self._used.items() if end > now}
        if until <= now or body in self._used:
            raise TicketError("the link was used before or has expired", hint=f"make another: {self.opener}")
        self._used[body] = until

    def leave(self, folder: Path, address: str, write: Callable[[Path, bytes], None]) -> str:
        """Write down what ``link`` and Prometheus need; returns the token for ``/metrics``.

        Args:
            folder: the private folder ``FOLDER`` of a home.
            address: where the pages are.
            write: replaces a file, readable by its owner only.
        """
        scrape = folder / SCRAPE
        if not scrape.exists():
            write(scrape, secrets.token_urlsafe(32).encode())
        write(folder / KEY, self.key.encode())
        write(folder / ADDRESS, address.encode())
        return scrape.read_text(encoding="ascii")


def withdraw(home: Path) -> None:
    """The pages are closed: their links lead nowhere."""
    for name in (KEY, ADDRESS):
        (home / FOLDER / name).unlink(missing_ok=True)
