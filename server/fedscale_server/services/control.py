"""The control service: what coordinators, researchers and auditors ask of the server, as gRPC calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import control_pb2_grpc
from fedscale.wire.limits import RECORD_PART
from fedscale_server import collection
from fedscale_server.answers import Site, Status
from fedscale_server.coordinator import Coordinator
from fedscale_server.services.guard import Context, caller
from fedscale_server.services.letters import letter_from_proto, metrics_from_text, model_from_text, reply_to_proto
from fedscale_server.trail import Author

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fedscale_server.courier import Courier


class ControlService(control_pb2_grpc.ControlServicer):
    """Projects, tickets, sites and runs.

    Args:
        coordinator: does it.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:  # noqa: ARG002, N802 - gRPC's names
        """The server at a glance."""
        return _status(await self._coordinator.status())

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.Project:  # noqa: ARG002, N802 - gRPC's names
        """A new, empty project."""
        return pb.Project(**_facts(await self._coordinator.create_project(request.name, _author())))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsReply:  # noqa: ARG002, N802 - gRPC's names
        """All projects with their sizes."""
        return pb.ListProjectsReply(projects=[pb.Project(**_facts(p)) for p in await self._coordinator.projects()])

    async def Invite(self, request: pb.InviteRequest, context: Context) -> pb.InviteReply:  # noqa: ARG002, N802 - gRPC's names
        """A one-time ticket."""
        return pb.InviteReply(**_facts(await self._coordinator.invite(request.project, request.name, request.role, request.ttl_seconds, _author())))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesReply:  # noqa: ARG002, N802 - gRPC's names
        """The sites of a project, or all."""
        return pb.ListNodesReply(nodes=[_node(site) for site in await self._coordinator.sites(request.project)])

    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeReply:  # noqa: ARG002, N802 - gRPC's names
        """Shut a member out and cut its stream."""
        await self._coordinator.revoke(request.name, _author())
        return pb.RevokeReply()

    async def SubmitRun(self, request: pb.SubmitRunRequest, context: Context) -> pb.RunInfo:  # noqa: ARG002, N802 - gRPC's names
        """Start a run."""
        return pb.RunInfo(**_facts(await self._coordinator.submit(request.project, request.plan, request.bundle, request.key, _author())))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsReply:  # noqa: ARG002, N802 - gRPC's names
        """Runs, newest first."""
        return pb.ListRunsReply(runs=[pb.RunInfo(**_facts(info)) for info in await self._coordinator.runs(request.project)])

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> AsyncIterator[pb.RunDetail]:  # noqa: ARG002, N802 - gRPC's names
        """One run with its record so far."""
        detail = await self._coordinator.detail(request.run)
        first, *rest = (detail.record[at : at + RECORD_PART] for at in range(0, len(detail.record), RECORD_PART))
        yield pb.RunDetail(info=pb.RunInfo(**_facts(detail.info)), record=first, model=detail.model, schema=detail.schema)
        for part in rest:
            yield pb.RunDetail(record=part)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.RunEvent]:  # noqa: ARG002, N802 - gRPC's names
        """The journal from ``after`` on, then everything as it happens, until the run is over."""
        watching = self._coordinator.watch(request.run, request.after)
        try:
            async for event in watching:
                yield event
        finally:
            await watching.aclose()

    async def SteerRun(self, request: pb.SteerRunRequest, context: Context) -> pb.RunInfo:  # noqa: ARG002, N802 - gRPC's names
        """Stop, pause or resume."""
        return pb.RunInfo(**_facts(await self._coordinator.steer(request.run, request.action, request.reason, _author())))

    async def Post(self, request: pb.PostRequest, context: Context) -> pb.PostReply:  # noqa: ARG002, N802 - gRPC's names
        """Letters from the leader of a run."""
        courier = await self._led(request.run)
        return pb.PostReply(missing=await courier.post(list(map(letter_from_proto, request.letters))))

    async def Collect(self, request: pb.CollectRequest, context: Context) -> AsyncIterator[pb.Reply]:  # noqa: ARG002, N802 - gRPC's names
        """Who takes part, then all replies from ``after`` on, as they come."""
        courier = await self._led(request.run)
        await self._coordinator.noted(_author(), "replies taken", request.run)
        yield pb.Reply(members=await collection.members(courier))
        collecting = collection.replies(courier, request.after)
        try:
            async for reply in collecting:
                parts = reply_to_proto(*await collection.content(courier, reply))
                while part := await asyncio.to_thread(next, parts, None):
                    yield part
        finally:
            await collecting.aclose()

    async def Conclude(self, request: pb.ConcludeRequest, context: Context) -> pb.RunInfo:  # noqa: ARG002, N802 - gRPC's names
        """The leader of a run has come to its end; the first time counts."""
        if not (info := await self._coordinator.run(request.run)).finished:
            courier, metrics, model = await self._led(request.run), metrics_from_text(request.metrics), model_from_text(request.model)
            await self._coordinator.noted(_author(), "run led to its end", request.run, reason=request.reason)
            await courier.conclude(request.reason, metrics, model)
            info = await self._coordinator.run(request.run)
        return pb.RunInfo(**_facts(info))

    async def _led(self, run: str) -> Courier:
        """Who carries the letters of a run that the caller leads, from now on at the latest."""
        courier, author = self._coordinator.engine.courier(run), _author()
        await courier.lead(author.who, partial(self._coordinator.note, author, "run led", run))
        return courier


def _author() -> Author:
    """Whoever calls, as the audit trail names them."""
    return Author(caller().name, "certificate")


def _facts(value: DataclassInstance) -> Mapping[str, Any]:
    """The fields of a value, whose names are those of its message."""
    return asdict(value)


def _node(site: Site) -> pb.NodeInfo:
    """A site as its message."""
    return pb.NodeInfo(**asdict(site))


def _status(status: Status) -> pb.StatusReply:
    """The server at a glance as its message."""
    facts = {name: getattr(status, name) for name in ("version", "federation", "address", "enrolment", "epoch", "leads_until", "replicas")}
    return pb.StatusReply(**facts, nodes=map(_node, status.nodes), runs=[pb.RunInfo(**_facts(info)) for info in status.runs])
