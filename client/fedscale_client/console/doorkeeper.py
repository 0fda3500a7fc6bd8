"""Who has come in by a link; logins are forgotten when the console stops."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from fedscale.identity import Role, secret_hash
from fedscale.web.links import Links
from fedscale.web.visitors import Visitor, new_token

LOGIN_HOURS = 12


class Doorkeeper:
    """Lets in whoever holds a link, and knows them again.

    Args:
        name: of the site.
        links: the one-time links of this console.
        now: tells when something expires.
    """

    def __init__(self, name: str, links: Links, now: Callable[[], datetime]) -> None:
        self._name, self._links, self._now = name, links, now
        self._until: dict[str, datetime] = {}

    async def visitor(self, token: str) -> Visitor:
        """Who holds a cookie; nobody when it is not of a login that goes on."""
        until = self._until.get(secret_hash(token))
        return Visitor(token, self._name, Role.NODE) if until and until > self._now() else Visitor(token)

    def enter(self, token: str) -> Visitor:
        """Let the owner in by a one-time link.

        Raises:
            TicketError: the link cannot be used.
        """
        now = self._now()
        self._links.redeem(token, now.timestamp())
        self._until = {key: until for key, until in self._until.items() if until > now}
        visitor = Visitor(new_token(), self._name, Role.NODE)
        self._until[secret_hash(visitor.token)] = now + timedelta(hours=LOGIN_HOURS)
        return visitor

    def leave(self, visitor: Visitor) -> None:
        """End a login."""
        self._until.pop(secret_hash(visitor.token), None)
