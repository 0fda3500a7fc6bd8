"""The rights of the dashboard: what is not in this table is refused, so a new page is closed until somebody opens it here."""

from __future__ import annotations

from fedscale.identity import Role
from fedscale.web.gate import Rights

COOKIE = "fedscale"
OPERATORS = frozenset({Role.COORDINATOR, Role.RESEARCHER})
READERS = OPERATORS | {Role.AUDITOR}
COORDINATOR = frozenset({Role.COORDINATOR})
EVERYBODY = READERS | {None}
UPLOAD_BYTES = 72 << 20

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
    "GET /runs/{run}/card": READERS,
    "GET /sites": READERS,
    "GET /models": READERS,
    "GET /privacy": READERS,
    "GET /compare": READERS,
    "GET /audit": READERS,
    "GET /api/openapi.json": READERS,
    "GET /api/status": READERS,
    "GET /api/events": READERS,
    "GET /api/sites": READERS,
    "DELETE /api/sites/{name}": COORDINATOR,
    "GET /api/projects": READERS,
    "POST /api/projects": COORDINATOR,
    "POST /api/projects/{project}/invitations": COORDINATOR,
    "GET /api/audit": READERS,
    "GET /api/audit/head": READERS,
    "GET /api/runs": READERS,
    "POST /api/runs": OPERATORS,
    "GET /api/runs/{run}": READERS,
    "GET /api/runs/{run}/curves": READERS,
    "GET /api/runs/{run}/timeline": READERS,
    "GET /api/runs/{run}/record": READERS,
    "GET /api/runs/{run}/events": READERS,
    "GET /api/runs/{run}/report": READERS,
    "GET /api/runs/{run}/card": READERS,
    "GET /api/runs/{run}/model": OPERATORS,
    "POST /api/runs/{run}/state": OPERATORS,
}
TABLE = Rights(RIGHTS)
