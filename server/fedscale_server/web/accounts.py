"""Who is at the browser: passwords, one-time links and logins.

A browser's cookie holds a random token, the database its SHA-256. Before a login the cookie's token stands for nobody; the
login replaces it, so a token that somebody planted never becomes one that means anything. The proof against forged requests
is derived from the same token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHash

from fedscale.errors import AccessDenied, Conflict
from fedscale.identity import Role, secret_hash, valid_name
from fedscale.web.links import Links
from fedscale.web.visitors import Visitor, new_token
from fedscale_server.home import OPERATOR
from fedscale_server.store.tables import Account, Login
from fedscale_server.web.throttle import Throttle

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale_server.store.store import Store

LOGIN_HOURS = 12
SHORTEST_PASSWORD = 12
HASHES_AT_ONCE = 2
HASHER = PasswordHasher()
# Checked where there is no such account, so that a name cannot be told from a wrong password by the time it takes.
NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$iNpUCCVD0ex10WR0Ru7Tbg$oyG0DkOAckCGsMpvkPbcnudvktqmSR3IzvXCKvnAuOM"


def new_account(name: str, role: str, password: str, now: datetime) -> Account:
    """An account as it is stored.

    Raises:
        ConfigError: the name is not valid.
        Conflict: the name is the operator's.
        AccessDenied: the password is too short.
    """
    if valid_name(name) == OPERATOR:
        raise Conflict(f"'{OPERATOR}' is the operator, who needs no account", hint="log in with: fedscale server open")
    if len(password) < SHORTEST_PASSWORD:
        raise AccessDenied(f"the password is shorter than {SHORTEST_PASSWORD} characters")
    return Account(name=name, role=Role(role), password=HASHER.hash(password), created=now)


class Doorkeeper:
    """Logs people in and out, and knows them again.

    Args:
        store: accounts and logins.
        links: the one-time links of this server.
        clock: tells when something expires.
    """

    def __init__(self, store: Store, links: Links, clock: Clock) -> None:
        self._store, self._links, self._clock = store, links, clock
        self._throttle = Throttle()
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    async def visitor(self, token: str) -> Visitor:
        """Who holds a cookie; nobody when it is not of a login that goes on."""
        login = await asyncio.to_thread(self._store.login, secret_hash(token), self._clock.now()) if token else None
        return Visitor(token, login.account, Role(login.role)) if login else Visitor(token)

    def wait(self, name: str, address: str) -> float:
        """Seconds for which this account, or this address, may not be tried."""
        return max(self._throttle.wait(key, self._clock.monotonic()) for key in _keys(name, address))

    async def login(self, name: str, password: str, address: str) -> Visitor:
        """Log somebody in by password; the caller has asked ``wait``.

        Raises:
            AccessDenied: no such account or another password, without saying which.
        """
        # Noted before the slow check, so that many tries at the same time count as many.
        for key in _keys(name, address):
            self._throttle.miss(key, self._clock.monotonic())
        account = await asyncio.to_thread(self._store.account, name)
        async with self._hashing:
            right = await asyncio.to_thread(_matches, account.password if account else NOBODY, password)
        if account is None or not right:
            raise AccessDenied("the name or the password is wrong")
        for key in _keys(name, address):
            self._throttle.hit(key)
        return await self._open(account.name, Role(account.role))

    async def enter(self, token: str) -> Visitor:
        """Log the operator in by a one-time link.

        Raises:
            TicketError: the link cannot be used.
        """
        self._links.redeem(token, self._clock.now().timestamp())
        return await self._open(OPERATOR, Role.COORDINATOR)

    async def known(self, name: str) -> str:
        """The name of an account; of another name nothing is said, for it may be a password."""
        return name if await asyncio.to_thread(self._store.account, name) else "unknown"

    async def logout(self, visitor: Visitor) -> None:
        """End a login."""
        await asyncio.to_thread(self._store.close_login, secret_hash(visitor.token))

    async def _open(self, name: str, role: Role) -> Visitor:
        visitor, now = Visitor(new_token(), name, role), self._clock.now()
        row = Login(token_hash=secret_hash(visitor.token), account=name, role=role, created=now, expires_at=now + timedelta(hours=LOGIN_HOURS))
        await asyncio.to_thread(self._store.open_login, row)
        return visitor


def _keys(name: str, address: str) -> Iterator[str]:
    yield f"account {name}"
    yield f"address {address}"


def _matches(stored: str, password: str) -> bool:
    """Whether a password is the one whose hash is stored; slow on purpose."""
    try:
        return HASHER.verify(stored, password)
    except (Argon2Error, InvalidHash):
        return False
