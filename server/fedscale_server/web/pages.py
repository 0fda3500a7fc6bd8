"""The pages of the dashboard: the same functions as the API, as HTML."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from markupsafe import Markup

from fedscale import report
from fedscale.errors import ConfigError
from fedscale.lanes import FAILED, STAGES
from fedscale.metrics import HIGHER_IS_BETTER
from fedscale.record import RunRecord
from fedscale.report.page import POLICY
from fedscale.report.versus import comparison_parts
from fedscale.web.metrics import EXPOSITION
from fedscale.web.pages import environment, inside, static_file, static_files
from fedscale_server.web.api import RECENT_PHASES, Before, Desk, Person, Pictures, verified
from fedscale_server.web.gallery import POINTS
from fedscale_server.web.gate import COORDINATOR, OPERATORS
from fedscale_server.web.prometheus import exposition
from fedscale_server.web.views import OVER, attention, differences, progress

HERE = Path(__file__).parent
STATIC = static_files(HERE / "static")
MOST_COMPARED, RUNS_SHOWN, DEEDS_SHOWN = 12, 200, 300
PAGES = (("/", "Overview"), ("/runs", "Runs"), ("/sites", "Sites"), ("/models", "Models"), ("/privacy", "Privacy"), ("/audit", "Audit"))
router = APIRouter(include_in_schema=False)


TEMPLATES = environment(HERE / "templates", PAGES, over=OVER)


def page(template: str, request: Request, code: int = 200, **facts: Any) -> HTMLResponse:
    """A page of the dashboard."""
    visitor = request.state.visitor
    rights = {"may_run": visitor.role in OPERATORS, "may_manage": visitor.role in COORDINATOR}
    shown = TEMPLATES.get_template(template).render(visitor=visitor, path=request.url.path, **rights, **facts)
    return HTMLResponse(shown, code)


@router.get("/login")
async def login(request: Request, following: Annotated[str, Query(alias="next", max_length=500)] = "/") -> HTMLResponse:
    """Where somebody who is not logged in ends up."""
    return page("login.html", request, following=inside(following))


@router.get("/")
async def overview(request: Request, desk: Desk) -> HTMLResponse:
    """Live runs, the sites and what needs attention."""
    status = await desk.status()
    found = {info.run: await desk.record(info.run) for info in status.runs}
    live = [progress(info, record, 0) for info, record in found.values()]
    curves = desk.engine.curves
    sinks = {sink: (curves.dropped[sink], curves.failed[sink]) for sink in curves.sinks} if curves else {}
    remarks = attention(status, {name: record for name, (_, record) in found.items()}, desk.engine.now().timestamp(), sinks)
    finished = [info for info in await desk.runs() if info.status in OVER][:5]
    projects = await desk.projects()
    return page("overview.html", request, status=status, live=live, remarks=remarks, finished=finished, projects=projects)


@router.get("/runs")
async def runs(request: Request, desk: Desk) -> HTMLResponse:
    """All runs, and a form to submit another."""
    found = await desk.runs()
    return page("runs.html", request, runs=found[:RUNS_SHOWN], more=max(len(found) - RUNS_SHOWN, 0), projects=await desk.projects())


@router.get("/runs/{run}")
async def run(run: str, request: Request, desk: Desk, pictures: Pictures) -> HTMLResponse:
    """One run: curves, timeline, failures, bytes, plan."""
    info, shown = await pictures.picture(run)
    facts: dict[str, Any] = {
        "now": progress(info, shown.record, await desk.recent(info.run, RECENT_PHASES)),
        "info": info,
        "shown": shown,
        "record": shown.record,
        "finals": shown.finals,
        "points": POINTS,
        "stages": {stage: text for stage, text in STAGES.items() if stage != FAILED},
    }
    plan = tomllib.loads(shown.record.plan_toml)
    return page("run.html", request, higher=sorted(HIGHER_IS_BETTER), plan=plan, at=desk.engine.now().timestamp(), **facts)


@router.get("/runs/{run}/card")
async def card(run: str, desk: Desk) -> HTMLResponse:
    """The card of a run's model, to be printed."""
    _, record = await desk.record(run)
    shown = await asyncio.to_thread(lambda: report.card_page(report.model_card(record)))
    return HTMLResponse(shown, headers={"content-security-policy": POLICY})


@router.get("/sites")
async def sites(request: Request, desk: Desk) -> HTMLResponse:
    """All sites, and a form to invite another."""
    return page("sites.html", request, sites=await desk.sites(), projects=await desk.projects())


@router.get("/models")
async def models(request: Request, desk: Desk, pictures: Pictures) -> HTMLResponse:
    """The newest model of each run."""
    found = [await pictures.picture(info.run) for info in (await desk.runs())[:RUNS_SHOWN]]
    return page("models.html", request, models=[(info, shown.record, shown.finals) for info, shown in found if shown.record.model_digest])


@router.get("/privacy")
async def privacy(request: Request, desk: Desk, pictures: Pictures) -> HTMLResponse:
    """What each run promised and spent."""
    found = [await pictures.picture(info.run) for info in (await desk.runs())[:RUNS_SHOWN]]
    rows = [(info, tomllib.loads(shown.record.plan_toml), shown.record.extra.get("privacy")) for info, shown in found]
    return page("privacy.html", request, rows=rows)


@router.get("/compare")
async def compare(request: Request, desk: Desk, run: Annotated[Sequence[str], Query(max_length=MOST_COMPARED)] = ()) -> HTMLResponse:
    """Several runs side by side."""
    if len(run) < 2:
        raise ConfigError("to compare takes at least two runs", hint="choose them on the page of all runs")
    records: dict[str, RunRecord] = {}
    for name in run:
        info, record = await desk.record(name)
        records[info.run] = record
    parts = await asyncio.to_thread(lambda: [Markup(part) for part in comparison_parts(records)])  # noqa: S704 - escaped where it was made
    settings = differences((name, tomllib.loads(record.plan_toml)) for name, record in records.items())
    return page("compare.html", request, parts=parts, names=list(records), settings=settings)


@router.get("/audit")
async def audit(request: Request, desk: Desk, who: Person = "", before: Before = 0) -> HTMLResponse:
    """Who did what, a page at a time; the first one says whether all of it verifies."""
    found = await asyncio.to_thread(desk.trail.newest, DEEDS_SHOWN + 1, before, who)
    state = None if before else await asyncio.to_thread(verified, desk)
    shown = found[:DEEDS_SHOWN]
    older = shown[-1].seq if len(found) > DEEDS_SHOWN else 0
    return page("audit.html", request, deeds=shown, state=state, who=who, before=before, older=older)


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Style sheets and scripts, all of them our own."""
    return static_file(STATIC, name)


@router.get("/healthz")
async def healthy() -> PlainTextResponse:
    """That the process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
async def ready(request: Request, desk: Desk) -> PlainTextResponse:
    """That the database answers and the server is not going down."""
    if request.app.state.gone.is_set():
        return PlainTextResponse("going down\n", 503)
    await desk.projects()
    return PlainTextResponse("ready\n")


@router.get("/metrics")
async def metrics(desk: Desk) -> Response:
    """For Prometheus."""
    return Response(exposition(desk.engine, await desk.status()), media_type=EXPOSITION)
