"""The API of the dashboard: every number that a page shows, and every action, as JSON; described at ``/api/openapi.json``."""

from __future__ import annotations

import asyncio
import math
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from fedscale import report
from fedscale.errors import AccessDenied, ConfigError, RunFailed
from fedscale.record import RunRecord
from fedscale.report.page import POLICY
from fedscale.web.faults import body
from fedscale.web.visitors import Visitor
from fedscale.wire.limits import ROUNDS
from fedscale_server.answers import Invitation, Project, RunInfo, Site, Status
from fedscale_server.coordinator import Coordinator
from fedscale_server.deeds import Deed
from fedscale_server.trail import Author
from fedscale_server.web import stream
from fedscale_server.web.accounts import Doorkeeper
from fedscale_server.web.gallery import Gallery
from fedscale_server.web.parcel import bundle_of, plan_of
from fedscale_server.web.past import Past, phases
from fedscale_server.web.views import Progress, progress

RECENT_PHASES = 60
DOOR = "dashboard"
EVENTS = {"x-accel-buffering": "no"}
router = APIRouter(prefix="/api")


def coordinator_of(request: Request) -> Coordinator:
    """Whom the request is for."""
    coordinator: Coordinator = request.app.state.coordinator
    return coordinator


def visitor_of(request: Request) -> Visitor:
    """Whoever the gate has let in."""
    visitor: Visitor = request.state.visitor
    return visitor


def doorkeeper_of(request: Request) -> Doorkeeper:
    """Who logs people in and out."""
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    return doorkeeper


def gallery_of(request: Request) -> Gallery:
    """What the pages show of records."""
    gallery: Gallery = request.app.state.gallery
    return gallery


Person = Annotated[str, Query(max_length=200)]
Before = Annotated[int, Query(ge=0, le=2**53)]
Desk = Annotated[Coordinator, Depends(coordinator_of)]
Pictures = Annotated[Gallery, Depends(gallery_of)]
Who = Annotated[Visitor, Depends(visitor_of)]
Door = Annotated[Doorkeeper, Depends(doorkeeper_of)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Credentials(_Body):
    """A name and a password."""

    name: str = Field(max_length=200)
    password: str = Field(max_length=1000, repr=False)


class Link(_Body):
    """What stands behind ``#`` in a one-time link."""

    token: str = Field(max_length=200, repr=False)


class Session(_Body):
    """Who is logged in."""

    name: str
    role: str


class NewProject(_Body):
    """A project to be made."""

    name: str = Field(max_length=200)


class Invite(_Body):
    """Whom to invite; a site and a week unless told otherwise."""

    name: str = Field("", max_length=200)
    role: str = Field("node", max_length=20)
    days: float = Field(7.0, gt=0, le=30)


class Steer(_Body):
    """``stop``, ``pause`` or ``resume``."""

    action: str = Field(max_length=20)
    reason: str = Field("", max_length=500)


@router.post("/session", response_model=Session)
async def log_in(given: Credentials, request: Request, response: Response, door: Door, desk: Desk) -> Session | Response:
    """Log in by password; whoever guesses wrong too often has to wait."""
    address = request.client.host if request.client else ""
    if (seconds := math.ceil(door.wait(given.name, address))) > 0:
        slow = AccessDenied("too many wrong passwords", why=f"wait {seconds} s")
        return JSONResponse(body(slow), 429, {"retry-after": str(seconds)})
    try:
        visitor = await door.login(given.name, given.password, address)
    except AccessDenied:
        await desk.noted(Author(await door.known(given.name), DOOR), "login refused", address)
        raise
    await desk.noted(_author(visitor), "logged in", address, role=str(visitor.role))
    return _welcomed(request, response, visitor)


@router.post("/session/link")
async def enter(given: Link, request: Request, response: Response, door: Door, desk: Desk) -> Session:
    """Log in by a one-time link."""
    visitor = await door.enter(given.token)
    await desk.noted(_author(visitor), "logged in", request.client.host if request.client else "", role=str(visitor.role), by="link")
    return _welcomed(request, response, visitor)


def _welcomed(request: Request, response: Response, visitor: Visitor) -> Session:
    """The answer to a login, with a token that the browser did not have before."""
    request.state.gate.cookie(response, visitor.token)
    return Session(name=visitor.name, role=str(visitor.role))


@router.get("/session")
async def who(visitor: Who) -> Session:
    """Who is logged in."""
    return Session(name=visitor.name, role=str(visitor.role))


@router.delete("/session", status_code=204)
async def log_out(visitor: Who, door: Door, desk: Desk) -> None:
    """End the login."""
    await door.logout(visitor)
    await desk.noted(_author(visitor), "logged out")


@router.get("/status")
async def status(desk: Desk) -> Status:
    """The server at a glance: sites, and the runs that go on."""
    return await desk.status()


@router.get("/events", response_class=StreamingResponse)
async def events(desk: Desk, door: Door, visitor: Who, request: Request) -> StreamingResponse:
    """Server-sent events: the status, whenever it changes."""
    told = stream.changes(desk, lambda: _still(door, visitor), request.app.state.gone)
    return StreamingResponse(told, media_type="text/event-stream", headers=EVENTS)


@router.get("/sites")
async def sites(desk: Desk, project: str = "") -> list[Site]:
    """The sites of a project, or of all."""
    return await desk.sites(project)


@router.delete("/sites/{name}", status_code=204)
async def revoke(name: str, desk: Desk, visitor: Who) -> None:
    """Shut a site out at once."""
    await desk.revoke(name, _author(visitor))


@router.get("/projects")
async def projects(desk: Desk) -> list[Project]:
    """All projects with their numbers of sites and runs."""
    return await desk.projects()


@router.post("/projects", status_code=201)
async def create_project(given: NewProject, desk: Desk, visitor: Who) -> Project:
    """A new, empty project."""
    return await desk.create_project(given.name, _author(visitor))


@router.post("/projects/{project}/invitations", status_code=201)
async def invite(project: str, given: Invite, desk: Desk, visitor: Who) -> Invitation:
    """A one-time ticket, which is shown this once."""
    return await desk.invite(project, given.name, given.role, given.days * 86_400, _author(visitor))


@router.get("/runs")
async def runs(desk: Desk, project: str = "") -> list[RunInfo]:
    """Runs, newest first."""
    return await desk.runs(project)


@router.post("/runs", status_code=201)
async def submit(
    desk: Desk,
    visitor: Who,
    project: Annotated[str, Form(max_length=200)],
    files: Annotated[list[UploadFile], File(description="job.toml and the app's files, or one zip archive of the job's folder")],
    key: Annotated[str, Form(max_length=200)] = "",
) -> RunInfo:
    """Start a run from a job's files; the same key never starts a second one."""
    sent = {file.filename or "": await file.read() for file in files}
    plan, packed = await asyncio.to_thread(_packed, sent)
    digest = await desk.keep_bundle(packed)
    return await desk.submit(project, plan, digest, key or secrets.token_hex(16), _author(visitor))


def _packed(sent: dict[str, bytes]) -> tuple[str, bytes]:
    """The plan and the bundle of a job that was sent as files."""
    job = plan_of(sent)
    return job.plan.to_toml(), bundle_of(job)


@router.get("/runs/{run}")
async def run_progress(run: str, desk: Desk, pictures: Pictures) -> Progress:
    """Where a run stands, how much of it is done and for how long it will go on."""
    info, picture = await pictures.picture(run)
    return progress(info, picture.record, await desk.recent(info.run, RECENT_PHASES))


@router.get("/runs/{run}/curves", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def run_curves(run: str, pictures: Pictures, until: Annotated[int, Query(ge=0, le=ROUNDS)] = 0) -> Response:
    """The curves of a run so far, metric by metric; of a long run some of its rounds, the newest ones all, or all of the last rounds up to one."""
    return Response(await pictures.curves(run, until), media_type="application/json")


@router.get("/runs/{run}/timeline")
async def run_timeline(run: str, desk: Desk, until: Annotated[int, Query(ge=1, le=ROUNDS)] = ROUNDS) -> list[Past]:
    """What each site did, moment by moment, in the last closed phases up to a round."""
    info = await desk.run(run)
    return await asyncio.to_thread(phases, desk.engine.store, info.run, min(until, info.number))


@router.get("/runs/{run}/record", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def run_record(run: str, desk: Desk) -> Response:
    """The whole record of a run so far: plan, rounds, metrics, failures, bytes."""
    return Response(await desk.record_text(run), media_type="application/json")


@router.get("/runs/{run}/events", response_class=StreamingResponse)
async def run_events(
    run: str,
    desk: Desk,
    door: Door,
    visitor: Who,
    after: Annotated[int, Query(ge=0)] = 0,
    last_event_id: Annotated[str, Header(max_length=20)] = "",
) -> StreamingResponse:
    """Server-sent events: the journal behind ``after``, or behind ``Last-Event-ID`` where that is further on, then everything as it happens."""
    info = await desk.run(run)
    seen = max(after, int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else 0)
    told = stream.run_events(desk, info.run, seen, lambda: _still(door, visitor))
    return StreamingResponse(told, media_type="text/event-stream", headers=EVENTS)


@router.get("/runs/{run}/report", response_class=Response)
async def run_report(run: str, desk: Desk) -> Response:
    """The self-contained report of a run, to be kept."""
    info, record = await desk.record(run)
    page = await asyncio.to_thread(_report, record)
    return Response(page, media_type="text/html", headers=_attached(f"{info.run}.html") | {"content-security-policy": POLICY})


def _report(record: RunRecord) -> str:
    return report.html(record)


@router.get("/runs/{run}/card")
async def run_card(run: str, desk: Desk) -> dict[str, Any]:
    """The card of a run's model: data, plan, privacy, metrics, contributors, hashes; what it is for is left to be filled in."""
    _, record = await desk.record(run)
    return await asyncio.to_thread(report.model_card, record)


@router.get("/runs/{run}/model", response_class=Response)
async def run_model(run: str, desk: Desk, visitor: Who) -> Response:
    """The newest model of a run as safetensors."""
    info, content = await desk.model(run)
    await desk.noted(_author(visitor), "model taken", info.run)
    return Response(content, media_type="application/octet-stream", headers=_attached(f"{info.run}.safetensors"))


@router.post("/runs/{run}/state")
async def steer(run: str, given: Steer, desk: Desk, visitor: Who) -> RunInfo:
    """Stop, pause or resume a run."""
    return await desk.steer(run, given.action, given.reason, _author(visitor))


@router.get("/audit")
async def audit(desk: Desk, who: Person = "", before: Before = 0, limit: Annotated[int, Query(ge=1, le=10_000)] = 500) -> list[Deed]:
    """Who did what, the newest first: of one person or of all, and from before a line on."""
    return await asyncio.to_thread(desk.trail.newest, limit, before, who)


@router.get("/audit/head")
async def audit_head(desk: Desk) -> dict[str, str | int]:
    """Whether the audit trail verifies, and where it ends."""
    return await asyncio.to_thread(verified, desk)


def verified(desk: Coordinator) -> dict[str, str | int]:
    """``lines`` and ``head`` of the audit trail, or the ``problem`` with it."""
    try:
        lines, digest = desk.trail.verify()
    except (RunFailed, ConfigError) as error:
        return {"lines": 0, "head": "", "problem": error.why or str(error)}
    return {"lines": lines, "head": f"{lines}:{digest}", "problem": ""}


def _author(visitor: Visitor) -> Author:
    """A visitor, as the audit trail names them."""
    return Author(visitor.name, DOOR)


async def _still(door: Doorkeeper, visitor: Visitor) -> bool:
    """Whether a visitor is still logged in."""
    return (await door.visitor(visitor.token)).role is not None


def _attached(name: str) -> dict[str, Any]:
    return {"content-disposition": f'attachment; filename="{name}"'}
