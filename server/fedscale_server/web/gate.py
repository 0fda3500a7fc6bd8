"""The gate in front of the dashboard: who may ask for what, before a byte of the request's body is read.

``RIGHTS`` is the whole authorisation table. What is not in it is refused, so a new page is closed until somebody opens it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response

from fedscale.errors import AccessDenied, FedscaleError, NotFound, ProtocolError
from fedscale.identity import Role
from fedscale_server.web.accounts import Doorkeeper, Visitor, new_token
from fedscale_server.web.faults import STATUS, body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE, PROOF = "fedscale", "x-fedscale-proof"
OPERATORS = frozenset({Role.COORDINATOR, Role.RESEARCHER})
READERS = OPERATORS | {Role.AUDITOR}
COORDINATOR = frozenset({Role.COORDINATOR})
EVERYBODY = READERS | {None}
SAFE = ("GET", "HEAD")
JSON_BYTES, UPLOAD_BYTES = 64 << 10, 72 << 20
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"

RIGHTS: dict[str, frozenset[Role | None]] = {
    "GET /healthz": EVERYBODY,
    "GET /readyz": EVERYBODY,
    "GET /static/{name}": EVERYBODY,
    "GET /login": EVERYBODY,
    "POST /api/session": EVERYBODY,
    "POST /api/session/link": EVERYBODY,
    "GET /api/session": READERS,
    "DELETE /api/session": READERS,
    "GET /metrics": READERS,
    "GET /": READERS,
    "GET /runs": READERS,
    "GET /runs/{run}": READERS,
    "GET /sites": READERS,
    "GET /models": READERS,
    "GET /privacy": READERS,
    "GET /compare": READERS,
    "GET /api/openapi.json": READERS,
    "GET /api/status": READERS,
    "GET /api/events": READERS,
    "GET /api/sites": READERS,
    "DELETE /api/sites/{name}": COORDINATOR,
    "GET /api/projects": READERS,
    "POST /api/projects": COORDINATOR,
    "POST /api/projects/{project}/invitations": COORDINATOR,
    "GET /api/runs": READERS,
    "POST /api/runs": OPERATORS,
    "GET /api/runs/{run}": READERS,
    "GET /api/runs/{run}/record": READERS,
    "GET /api/runs/{run}/events": READERS,
    "GET /api/runs/{run}/report": READERS,
    "GET /api/runs/{run}/model": OPERATORS,
    "POST /api/runs/{run}/state": OPERATORS,
}
PATTERNS = {key: re.compile(re.sub(r"\{\w+\}", "[^/]+", key)) for key in RIGHTS}


class Gate:
    """Middleware: the host that was asked for, the login, the rights, the proof against forged requests, and the headers of every answer.

    Args:
        app: what is behind the gate.
        doorkeeper: knows the logins.
        hosts: names the server goes by; a page of another name that was pointed at this machine gets nothing.
        scrape: the token that opens ``/metrics`` without a login.
        tls: whether the browser speaks TLS with us, so that cookies must never travel without.
    """

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper, hosts: Iterable[str], scrape: str, *, tls: bool) -> None:
        self._app, self._doorkeeper, self._scrape, self._tls = app, doorkeeper, scrape, tls
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers = Headers(scope=scope)
        token = _cookie(headers.get("cookie", ""))
        try:
            visitor = await self._admit(scope, headers, token)
        except FedscaleError as error:
            await _refusal(scope, error, nobody=isinstance(error, AccessDenied) and not error.where)(scope, receive, self._dressed(send, None))
            return
        fresh = new_token() if scope["path"] == "/login" and not visitor.token else None
        scope.setdefault("state", {}).update(visitor=visitor if fresh is None else Visitor(fresh), gate=self)
        limit = UPLOAD_BYTES if scope["path"] == "/api/runs" else JSON_BYTES
        await self._app(scope, _limited(receive, limit), self._dressed(send, fresh))

    async def _admit(self, scope: Scope, headers: Headers, token: str) -> Visitor:
        """Find out who asks and whether they may.

        Raises:
            ProtocolError: another host, or a body that is too large.
            AccessDenied: not logged in (without ``where``), not for this role, or a forged request.
            NotFound: nothing of that name.
        """
        host = headers.get("host", "")
        if (urlsplit(f"//{host}").hostname or "") not in self._hosts:
            raise ProtocolError("the dashboard is not known by this name", hint="add it to hosts in server.toml")
        method, path = scope["method"], scope["path"]
        key = next((key for key, pattern in PATTERNS.items() if pattern.fullmatch(f"{method} {path}")), "")
        rights = RIGHTS.get(key, frozenset[Role | None]())
        visitor = await self._doorkeeper.visitor(token)
        if key == "GET /metrics" and compare_digest(headers.get("authorization", "").encode(), f"Bearer {self._scrape}".encode()):
            return visitor
        if None not in rights and visitor.role is None:
            raise AccessDenied("nobody is logged in", hint="log in, or make a link: fedscale server open")
        if not rights:
            raise NotFound("there is no such page")
        if None not in rights and visitor.role not in rights:
            raise AccessDenied(f"role '{visitor.role}' may not do this", where=f"{method} {path}")
        if method not in SAFE:
            _unforged(headers, host, visitor)
        return visitor

    def cookie(self, response: Response, token: str) -> None:
        """Give the browser its token, out of reach of scripts and other sites."""
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=self._tls, path="/")

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
                if self._tls:
                    headers["strict-transport-security"] = "max-age=31536000"
                if fresh and "set-cookie" not in headers:
                    carrier = Response()
                    self.cookie(carrier, fresh)
                    headers.append("set-cookie", carrier.headers["set-cookie"])
            await send(message)

        return dressed


def _cookie(header: str) -> str:
    """The token in a cookie header, empty when there is none."""
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _unforged(headers: Headers, host: str, visitor: Visitor) -> None:
    """Refuse a change that no page of ours asked for.

    Raises:
        AccessDenied: the request comes from elsewhere or lacks the proof.
    """
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
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
