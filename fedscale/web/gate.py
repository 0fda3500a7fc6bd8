"""The gate in front of our pages: who may ask for what, before a byte of the request's body is read.

A table of rights is the whole authorisation. What is not in it is refused, so a new page is closed until somebody opens it there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response

from fedscale.errors import AccessDenied, FedscaleError, NotFound, ProtocolError
from fedscale.identity import Role
from fedscale.web.faults import STATUS, body
from fedscale.web.visitors import Visitor, new_token

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROOF = "x-fedscale-proof"
SAFE = ("GET", "HEAD")
JSON_BYTES = 64 << 10
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


class Doorkeeper(Protocol):
    """Who knows the logins."""

    async def visitor(self, token: str) -> Visitor:
        """Who holds a cookie; nobody when it is not of a login that goes on."""


class Rights:
    """Who may ask for what.

    Args:
        table: roles by method and path, such as ``GET /runs/{run}``; ``None`` among the roles stands for everybody.
    """

    def __init__(self, table: Mapping[str, frozenset[Role | None]]) -> None:
        self.table = dict(table)
        self._patterns = {key: re.compile(re.sub(r"\{\w+\}", "[^/]+", key)) for key in table}

    def find(self, request: str) -> tuple[str, frozenset[Role | None]]:
        """The entry of a request, method and path, and who may make it: nobody where there is no entry."""
        key = next((key for key, pattern in self._patterns.items() if pattern.fullmatch(request)), "")
        return key, self.table.get(key, frozenset())


@dataclass(frozen=True, slots=True)
class House:
    """How pages are reached, and the rules of the house.

    Args:
        rights: who may ask for what.
        cookie: the name of its cookie; programs at other ports of a host get the same cookies.
        name: what the pages are called.
        opener: the command that makes a login link.
        hosts: names the house goes by; a page of another name that was pointed at this machine gets nothing.
        scrape: the token that opens ``/metrics`` without a login.
        tls: whether the browser speaks TLS with us, so that cookies must never travel without.
        uploads: most bytes of a body, for paths that take more than JSON.
    """

    rights: Rights
    cookie: str
    name: str
    opener: str
    hosts: frozenset[str]
    scrape: str = field(repr=False)
    tls: bool
    uploads: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def names(hosts: Iterable[str]) -> frozenset[str]:
        """Host names as they are compared."""
        return frozenset(host.lower() for host in hosts)


class Gate:
    """Middleware: the host that was asked for, the login, the rights, the proof against forged requests, and the headers of every answer.

    Args:
        app: what is behind the gate.
        doorkeeper: knows the logins.
        house: how it is reached, and who may do what.
    """

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper, house: House) -> None:
        self._app, self._doorkeeper, self._house = app, doorkeeper, house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers = Headers(scope=scope)
        token = _cookie(headers.get("cookie", ""), self._house.cookie)
        try:
            visitor = await self._admit(scope, headers, token)
        except FedscaleError as error:
            await _refusal(scope, error, nobody=isinstance(error, AccessDenied) and not error.where)(scope, receive, self._dressed(send, None))
            return
        fresh = new_token() if scope["path"] == "/login" and not visitor.token else None
        scope.setdefault("state", {}).update(visitor=visitor if fresh is None else Visitor(fresh), gate=self)
        limit = self._house.uploads.get(scope["path"], JSON_BYTES)
        await self._app(scope, _limited(receive, limit), self._dressed(send, fresh))

    async def _admit(self, scope: Scope, headers: Headers, token: str) -> Visitor:
        """Find out who asks and whether they may.

        Raises:
            ProtocolError: another host, or a body that is too large.
            AccessDenied: not logged in (without ``where``), not for this role, or a forged request.
            NotFound: nothing of that name.
        """
        host = headers.get("host", "")
        if _host_name(host) not in self._house.hosts:
            raise ProtocolError(
                f"the {self._house.name} is not known by this name", hint="open it by a name of this machine, or add the name to its settings"
            )
        method, path = scope["method"], scope["path"]
        key, rights = self._house.rights.find(f"{method} {path}")
        visitor = await self._doorkeeper.visitor(token)
        if key == "GET /metrics" and compare_digest(headers.get("authorization", "").encode(), f"Bearer {self._house.scrape}".encode()):
            return visitor
        if None not in rights and visitor.role is None:
            raise AccessDenied("nobody is logged in", hint=f"log in, or make a link: {self._house.opener}")
        if not rights:
            raise NotFound("there is no such page")
        if None not in rights and visitor.role not in rights:
            raise AccessDenied(f"role '{visitor.role}' may not do this", where=f"{method} {path}")
        if method not in SAFE:
            _unforged(headers, host, visitor)
        return visitor

    def cookie(self, response: Response, token: str) -> None:
        """Give the browser its token, out of reach of scripts and other sites."""
        response.set_cookie(self._house.cookie, token, httponly=True, samesite="strict", secure=self._house.tls, path="/")

    def _dressed(self, send: Send, fresh: str | None) -> Send:
        """Every answer with the headers that keep a browser from helping others; a stranger also gets a token."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", POLICY)
                headers.setdefault("cache-control", "no-store")
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["cross-origin-opener-policy"] = "same-origin"
                if self._house.tls:
                    headers["strict-transport-security"] = "max-age=31536000"
                if fresh and "set-cookie" not in headers:
                    carrier = Response()
                    self.cookie(carrier, fresh)
                    headers.append("set-cookie", carrier.headers["set-cookie"])
            await send(message)

        return dressed


def _host_name(authority: str) -> str:
    """The name or address in ``HOST[:PORT]``, empty for what is neither."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _cookie(header: str, name: str) -> str:
    """The token in a cookie header, empty when there is none."""
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _unforged(headers: Headers, host: str, visitor: Visitor) -> None:
    """Refuse a change that no page of ours asked for.

    Raises:
        AccessDenied: the request comes from elsewhere or lacks the proof.
    """
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise AccessDenied("the request comes from another site", where="Origin")
    if not visitor.token or not compare_digest(headers.get(PROOF, "").encode(), visitor.proof.encode()):
        raise AccessDenied("the request lacks the page's proof", where=PROOF, hint="load the page again")


def _refusal(scope: Scope, error: FedscaleError, *, nobody: bool) -> Response:
    """What is answered at the gate: a redirect to the login for people, an error for programs."""
    path, asks_page = scope["path"], scope["method"] in SAFE and not scope["path"].startswith(("/api/", "/metrics"))
    if nobody and asks_page:
        query = f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else ""
        return RedirectResponse(f"/login?next={quote(path + query)}", 303)
    return JSONResponse(body(error), 401 if nobody else STATUS.get(type(error), 400))


def _limited(receive: Receive, limit: int) -> Receive:
    """A body of at most ``limit`` bytes; whoever sends more is not heard out."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > limit else message

    return counted
