"""The rights of the console: whoever came in by a link is the site's owner, everybody else gets the login and a sign of life."""

from __future__ import annotations

from fedscale.identity import Role
from fedscale.web.gate import Rights

COOKIE = "fedscale-node"
OWNER: frozenset[Role | None] = frozenset({Role.NODE})
EVERYBODY = OWNER | {None}

RIGHTS: dict[str, frozenset[Role | None]] = {
    "GET /healthz": EVERYBODY,
    "GET /static/{name}": EVERYBODY,
    "GET /login": EVERYBODY,
    "POST /api/session/link": EVERYBODY,
    "GET /api/session": OWNER,
    "DELETE /api/session": OWNER,
    "GET /metrics": OWNER,
    "GET /": OWNER,
    "GET /asked": OWNER,
    "GET /asked/{run}": OWNER,
    "GET /left": OWNER,
    "GET /privacy": OWNER,
    "GET /api/openapi.json": OWNER,
    "GET /api/events": OWNER,
    "GET /api/status": OWNER,
    "GET /api/asked": OWNER,
    "GET /api/asked/{run}": OWNER,
    "GET /api/receipts": OWNER,
    "GET /api/accounts": OWNER,
    "GET /api/policy": OWNER,
    "POST /api/pause": OWNER,
    "POST /api/apps/{app}": OWNER,
}
TABLE = Rights(RIGHTS)
