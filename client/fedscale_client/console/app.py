"""The console as one ASGI application: pages, and the same as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import fedscale
from fedscale.errors import FedscaleError, NotFound, ProtocolError
from fedscale.web.faults import STATUS, body, malformed
from fedscale.web.gate import Gate, House
from fedscale.web.metrics import EXPOSITION
from fedscale.web.pages import environment, inside, static_file, static_files
from fedscale_client.console.desk import Desk, plain
from fedscale_client.console.doorkeeper import Doorkeeper
from fedscale_client.console.prometheus import exposition
from fedscale_client.console.rights import COOKIE, TABLE

PAGES = (("/", "Overview"), ("/asked", "What was asked"), ("/left", "What left"), ("/privacy", "Privacy"))
NAMES = ("localhost", "127.0.0.1", "::1")
LOOK_SECONDS, PING_SECONDS = 1.0, 5.0
MOST_ROWS = 500
TEMPLATES = environment(Path(__file__).parent / "templates", PAGES)
STATIC = static_files()
router = APIRouter()


def desk_of(request: Request) -> Desk:
    """What the request is about."""
    desk: Desk = request.app.state.desk
    return desk


def doorkeeper_of(request: Request) -> Doorkeeper:
    """Who lets people in."""
    door: Doorkeeper = request.app.state.doorkeeper
    return door


Shown = Annotated[Desk, Depends(desk_of)]
Door = Annotated[Doorkeeper, Depends(doorkeeper_of)]


class Link(BaseModel):
    """What stands behind ``#`` in a one-time link."""

    token: str = Field(max_length=200, repr=False)


class Pause(BaseModel):
    """Whether the site shall be paused."""

    paused: bool


class Approval(BaseModel):
    """Whether an app is on the list of those that may run."""

    approved: bool


def build(desk: Desk, doorkeeper: Doorkeeper, scrape: str, gone: asyncio.Event, opener: str) -> Gate:
    """The application, behind its gate.

    Args:
        desk: what is shown.
        doorkeeper: who lets people in.
        scrape: the token for ``/metrics``.
        gone: set when the console goes down, so that streams end.
        opener: the command that makes a link.
    """
    app = FastAPI(title="fedscale node", version=fedscale.__version__, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    app.state.desk, app.state.doorkeeper, app.state.gone = desk, doorkeeper, gone
    app.include_router(router)
    for kind in (FedscaleError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answered)
    return Gate(app, doorkeeper, House(TABLE, COOKIE, "console", opener, House.names(NAMES), scrape, tls=False))


async def _answered(request: Request, error: Any) -> Response:
    """An error as its reader wants it: a page for people, JSON for programs."""
    other = malformed(error.errors()) if isinstance(error, RequestValidationError) else ProtocolError("the request cannot be read")
    missing = isinstance(error, HTTPException) and error.status_code == 404
    ours = error if isinstance(error, FedscaleError) else NotFound("there is no such page") if missing else other
    status = STATUS.get(type(ours), 400)
    if request.url.path.startswith("/api/"):
        return JSONResponse(body(ours), status)
    return page("error.html", request, status, error=ours)


def page(template: str, request: Request, code: int = 200, **facts: Any) -> HTMLResponse:
    """A page of the console."""
    return HTMLResponse(TEMPLATES.get_template(template).render(visitor=request.state.visitor, path=request.url.path, **facts), code)


@router.get("/login", include_in_schema=False)
async def login(request: Request, following: Annotated[str, Query(alias="next", max_length=500)] = "/") -> HTMLResponse:
    """Where somebody who came without a link ends up."""
    return page("login.html", request, following=inside(following))


@router.get("/", include_in_schema=False)
def overview(request: Request, desk: Shown) -> HTMLResponse:
    """How the site does."""
    facts: dict[str, Any] = {"status": desk.status(), "datasets": desk.datasets(), "remarks": desk.attention(), "accounts": desk.accounts()}
    return page("overview.html", request, asked=desk.asked()[:5], **facts)


@router.get("/asked", include_in_schema=False)
def asked(request: Request, desk: Shown) -> HTMLResponse:
    """What each run has asked."""
    return page("asked.html", request, status=desk.status(), asked=desk.asked()[:MOST_ROWS], apps=desk.policy()["apps"])


@router.get("/asked/{run}", include_in_schema=False)
def asked_by(run: str, request: Request, desk: Shown) -> HTMLResponse:
    """What one run has asked, its plan and its code."""
    one = desk.asked_by(run)
    left = [receipt for receipt in desk.receipts() if receipt["run"] == run][:MOST_ROWS]
    return page("run.html", request, one=one, status=desk.status(), sources=desk.sources(one.app), apps=desk.policy()["apps"], left=left)


@router.get("/left", include_in_schema=False)
def left(request: Request, desk: Shown) -> HTMLResponse:
    """Every answer that left."""
    receipts = desk.receipts()
    return page("left.html", request, receipts=receipts[:MOST_ROWS], more=max(len(receipts) - MOST_ROWS, 0))


@router.get("/privacy", include_in_schema=False)
def privacy(request: Request, desk: Shown) -> HTMLResponse:
    """What was spent, and what is allowed."""
    return page("privacy.html", request, accounts=desk.accounts(), uncovered=desk.uncovered(), ledger=desk.ledger(), policy=desk.policy())


@router.get("/static/{name}", include_in_schema=False)
async def static(name: str) -> Response:
    """Style sheets and scripts, all of them our own."""
    return static_file(STATIC, name)


@router.get("/healthz", include_in_schema=False)
async def healthy() -> PlainTextResponse:
    """That the console answers."""
    return PlainTextResponse("ok\n")


@router.get("/metrics", include_in_schema=False)
def metrics(desk: Shown) -> Response:
    """For Prometheus."""
    return Response(exposition(desk), media_type=EXPOSITION)


@router.post("/api/session/link")
async def enter(given: Link, request: Request, response: Response, door: Door) -> dict[str, str]:
    """Come in by a one-time link."""
    visitor = door.enter(given.token)
    request.state.gate.cookie(response, visitor.token)
    return {"name": visitor.name, "role": str(visitor.role)}


@router.get("/api/session")
async def who(request: Request) -> dict[str, str]:
    """Who is logged in."""
    return {"name": request.state.visitor.name, "role": str(request.state.visitor.role)}


@router.delete("/api/session", status_code=204)
async def log_out(request: Request, door: Door) -> None:
    """End the login."""
    door.leave(request.state.visitor)


@router.get("/api/status")
def status(desk: Shown) -> dict[str, Any]:
    """Who this node is and how it does."""
    return desk.status()


@router.get("/api/asked")
def all_asked(desk: Shown) -> list[dict[str, Any]]:
    """What each run has asked, the newest first."""
    return [plain(one) for one in desk.asked()]


@router.get("/api/asked/{run}")
def one_asked(run: str, desk: Shown) -> dict[str, Any]:
    """What one run has asked."""
    return plain(desk.asked_by(run))


@router.get("/api/receipts")
def receipts(desk: Shown) -> list[dict[str, Any]]:
    """What left this site, the newest first."""
    return desk.receipts()


@router.get("/api/accounts")
def accounts(desk: Shown) -> dict[str, Any]:
    """What was spent, how many answers no epsilon covers, and whether the ledger verifies."""
    return {"accounts": [account.to_json() for account in desk.accounts()], "not_covered": desk.uncovered(), "ledger": desk.ledger()}


@router.get("/api/policy")
def policy(desk: Shown) -> dict[str, Any]:
    """What this site allows."""
    return desk.policy()


@router.post("/api/pause")
def pause(given: Pause, desk: Shown) -> dict[str, Any]:
    """Pause the site, or let it go on."""
    return desk.pause(paused=given.paused)


@router.post("/api/apps/{app}")
def approve(app: str, given: Approval, desk: Shown) -> dict[str, Any]:
    """Put an app on the list of those that may run, or take it off."""
    return desk.approve(app, approved=given.approved)


@router.get("/api/events", response_class=StreamingResponse)
async def events(request: Request, desk: Shown, door: Door) -> StreamingResponse:
    """Server-sent events: that something has changed."""
    token = request.state.visitor.token

    async def told() -> AsyncGenerator[bytes, None]:
        yield b"retry: 1000\n\n"
        before, quiet = None, 0.0
        while not request.app.state.gone.is_set() and (await door.visitor(token)).role is not None:
            marks = await asyncio.to_thread(desk.marks)
            quiet = 0.0 if marks != before or quiet >= PING_SECONDS else quiet + LOOK_SECONDS
            if marks != before:
                yield b"data: {}\n\n"
            elif not quiet:
                yield b": still here\n\n"
            before = marks
            with suppress(TimeoutError):
                await asyncio.wait_for(request.app.state.gone.wait(), LOOK_SECONDS)

    return StreamingResponse(told(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
