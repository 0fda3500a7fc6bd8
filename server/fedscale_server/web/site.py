"""The dashboard as one ASGI application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

import fedscale
from fedscale.errors import FedscaleError, NotFound, ProtocolError, Unreachable
from fedscale.web.faults import STATUS, body, malformed
from fedscale.web.gate import Gate, House
from fedscale.web.links import Links
from fedscale_server.web import api, pages
from fedscale_server.web.accounts import Doorkeeper
from fedscale_server.web.gallery import Gallery
from fedscale_server.web.gate import COOKIE, TABLE, UPLOAD_BYTES

if TYPE_CHECKING:
    from fedscale_server.coordinator import Coordinator

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Terms:
    """How a dashboard is reached: the host names it answers to, the token for ``/metrics``, and whether browsers speak TLS with it."""

    hosts: tuple[str, ...]
    scrape: str
    tls: bool


def build(coordinator: Coordinator, links: Links, terms: Terms, gone: asyncio.Event) -> Gate:
    """The application, behind its gate.

    Args:
        coordinator: does all that is asked.
        links: the one-time links of this server.
        terms: how it is reached.
        gone: set when the server goes down, so that streams end.
    """
    app = FastAPI(title="fedscale", version=fedscale.__version__, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    doorkeeper = Doorkeeper(coordinator.engine.store, links, coordinator.engine.clock)
    app.state.coordinator, app.state.doorkeeper, app.state.gone = coordinator, doorkeeper, gone
    app.state.gallery = Gallery(coordinator)
    app.include_router(api.router)
    app.include_router(pages.router)
    for kind in (FedscaleError, RequestValidationError, HTTPException, SQLAlchemyError, PermissionError):
        app.add_exception_handler(kind, _answered)
    hosts, uploads = House.names(terms.hosts), {"/api/runs": UPLOAD_BYTES}
    return Gate(app, doorkeeper, House(TABLE, COOKIE, "dashboard", links.opener, hosts, terms.scrape, terms.tls, uploads))


async def _answered(request: Request, error: Exception) -> Response:
    """An error as its reader wants it: a page for people, JSON for programs."""
    ours = _ours(error)
    status = STATUS.get(type(ours), 400)
    if request.url.path.startswith("/api/"):
        return JSONResponse(body(ours), status)
    return pages.page("error.html", request, status, error=ours)


def _ours(error: Any) -> FedscaleError:
    """Any error in our terms."""
    if isinstance(error, FedscaleError):
        return error
    if isinstance(error, RequestValidationError):
        return malformed(error.errors())
    if isinstance(error, PermissionError):  # the store's, where another coordinator leads
        return Unreachable("nothing can be changed here", why=error.strerror or "", hint="open the dashboard of the coordinator that leads")
    if isinstance(error, SQLAlchemyError):
        log.error("the database does not answer the dashboard", error=type(error).__name__)
        return Unreachable("the database does not answer", hint="see the coordinator's log")
    return NotFound("there is no such page") if error.status_code == 404 else ProtocolError("the request cannot be read")
