"""The control service: what coordinators, researchers and auditors ask of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import structlog

import fedscale
from fedscale.errors import Unreachable
from fedscale.identity import Role, valid_name
from fedscale.plan import Plan
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import control_pb2_grpc
from fedscale.record import RunRecord
from fedscale.run import RUNNING
from fedscale_server.engine import Engine
from fedscale_server.feed import End, run_event
from fedscale_server.logbook import Entry, bare_record
from fedscale_server.registry import Registry
from fedscale_server.services.guard import Context, caller

if TYPE_CHECKING:
    from fedscale_server.store.tables import Member, RunRow

log = structlog.get_logger()
DAY = 86_400.0
PAGE = 500


class ControlService(control_pb2_grpc.ControlServicer):
    """Projects, tickets, sites and runs.

    Args:
        engine: the runs.
        registry: tickets and members.
        federation: the federation's name.
        address: ``host:port`` of the mTLS port.
        enrolment: ``host:port`` of the enrolment port, which goes into tickets.
    """

    def __init__(self, engine: Engine, registry: Registry, federation: str, address: str, enrolment: str) -> None:
        self._engine, self._registry, self._store = engine, registry, engine.store
        self._federation, self._address, self._enrolment = federation, address, enrolment

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:  # noqa: ARG002, N802 - gRPC's names
        """The server at a glance."""
        members = await asyncio.to_thread(self._store.members)
        rows = [driver.book.row for driver in self._engine.drivers()]
        return pb.StatusReply(
            version=fedscale.__version__,
            federation=self._federation,
            address=self._address,
            enrolment=self._enrolment,
            nodes=[self._node(m) for m in members if m.role == Role.NODE],
            runs=[self._info(row) for row in rows],
        )

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.Project:  # noqa: ARG002, N802 - gRPC's names
        """A new, empty project."""
        await asyncio.to_thread(self._store.create_project, valid_name(request.name), self._engine.now())
        return pb.Project(name=request.name)

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsReply:  # noqa: ARG002, N802 - gRPC's names
        """All projects with their sizes."""
        rows = await asyncio.to_thread(self._store.projects)
        return pb.ListProjectsReply(projects=[pb.Project(name=name, nodes=nodes, runs=runs) for name, nodes, runs in rows])

    async def Invite(self, request: pb.InviteRequest, context: Context) -> pb.InviteReply:  # noqa: ARG002, N802 - gRPC's names
        """A one-time ticket."""
        ttl, role = request.ttl_seconds or DAY, request.role or Role.NODE
        ticket = await asyncio.to_thread(self._registry.invite, request.project, request.name or None, role, ttl, self._enrolment)
        return pb.InviteReply(ticket=str(ticket), expires_at=self._engine.now().timestamp() + ttl)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesReply:  # noqa: ARG002, N802 - gRPC's names
        """The sites of a project, or all."""
        members = await asyncio.to_thread(self._store.members, request.project or None)
        return pb.ListNodesReply(nodes=[self._node(m) for m in members if m.role == Role.NODE])

    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeReply:  # noqa: ARG002, N802 - gRPC's names
        """Shut a member out and cut its stream."""
        await asyncio.to_thread(self._registry.revoke, request.name)
        self._engine.sessions.close(request.name)
        log.warning("member revoked", member=request.name, by=caller().name)
        return pb.RevokeReply()

    async def SubmitRun(self, request: pb.SubmitRunRequest, context: Context) -> pb.RunInfo:  # noqa: ARG002, N802 - gRPC's names
        """Start a run."""
        return self._info(await self._engine.submit(request.project, request.plan, request.bundle, request.key))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsReply:  # noqa: ARG002, N802 - gRPC's names
        """Runs, newest first."""
        rows = await asyncio.to_thread(self._store.runs, request.project or None)
        return pb.ListRunsReply(runs=[self._info(row) for row in rows])

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.RunDetail:  # noqa: ARG002, N802 - gRPC's names
        """One run with its record so far."""
        row = await asyncio.to_thread(self._store.run, request.run)
        checkpoint = await asyncio.to_thread(self._store.last_checkpoint, row.id)
        driver = self._engine.driver(row.id)
        if driver is not None:
            record = driver.book.record(self._engine.now())
        else:
            record = RunRecord.from_json(json.dumps(row.record)) if row.record else bare_record(row, row.status, row.reason, self._engine.now())
        model, schema = (checkpoint.model, checkpoint.facts["schema"]) if checkpoint else ("", "")
        return pb.RunDetail(info=self._info(row), record=record.to_json(), model=model, schema=schema)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.RunEvent]:  # noqa: ARG002, N802 - gRPC's names
        """The journal from ``after`` on, then everything as it happens, until the run is over."""
        row = await asyncio.to_thread(self._store.run, request.run)
        driver = self._engine.driver(row.id)
        live = driver.feed.watch() if driver else None
        last = request.after
        try:
            while page := await asyncio.to_thread(self._store.journal, row.id, last, PAGE):
                for entry in map(Entry.of, page):
                    yield run_event(entry.seq, entry.at.timestamp(), entry.kind, (entry.phase, entry.number), entry.detail, entry.node)
                last = page[-1].seq
            while live is not None:
                event = await live.get()
                if isinstance(event, End):
                    if event is End.OVER:
                        break
                    raise Unreachable(event.value, where=f"run {row.id}", hint="watch again from the last event on")
                # What was journaled between subscribing and reading has been sent already.
                if event.sequence == 0 or event.sequence > last:
                    yield event
        finally:
            if driver is not None and live is not None:
                driver.feed.leave(live)

    async def SteerRun(self, request: pb.SteerRunRequest, context: Context) -> pb.RunInfo:  # noqa: ARG002, N802 - gRPC's names
        """Stop, pause or resume."""
        await self._engine.steer(request.run, request.action, request.reason)
        log.info("run steered", run=request.run, action=request.action, by=caller().name)
        return self._info(await asyncio.to_thread(self._store.run, request.run))

    def _node(self, member: Member) -> pb.NodeInfo:
        """A site as people see it."""
        return pb.NodeInfo(
            name=member.name,
            project=member.project,
            connected=self._engine.sessions.get(member.name) is not None,
            datasets=member.datasets,
            last_seen=_seconds(member.last_seen),
            version=member.version,
            revoked=member.revoked_at is not None,
        )

    def _info(self, row: RunRow) -> pb.RunInfo:
        """A run as people see it."""
        driver = self._engine.driver(row.id)
        run = driver.book.run if driver else None
        last: dict[str, Any] = next(reversed((row.record or {}).get("rounds", [])), {})
        return pb.RunInfo(
            run=row.id,
            project=row.project,
            name=row.name,
            status=("paused" if run.paused and run.status == RUNNING else run.status) if run else row.status,
            reason=run.reason if run else row.reason,
            phase=str(run.phase) if run else last.get("phase", ""),
            number=run.number if run else last.get("number", 0),
            rounds=_rounds(row.plan),
            created=_seconds(row.created),
            finished=_seconds(row.finished),
        )


@lru_cache(maxsize=1024)
def _rounds(plan: str) -> int:
    """How many rounds a stored plan asks for."""
    return Plan.from_toml(plan).strategy.rounds


def _seconds(at: datetime | None) -> float:
    """Seconds since the epoch; 0 for never."""
    return at.timestamp() if at else 0.0
