"""The control service: what coordinators, researchers and auditors ask of the server, as gRPC calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import control_pb2_grpc
from fedscale_server import collection
from fedscale_server.answers import Site, Status
from fedscale_server.coordinator import Coordinator
from fedscale_server.services.guard import Context, caller
from fedscale_server.services.letters import letter_from_proto, metrics_from_text, reply_to_proto

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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
        made = await self._coordinator.create_project(request.name)
        await self._noted("project made", made.name)
        return pb.Project(**_facts(made))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsReply:  # noqa: ARG002, N802 - gRPC's names
        """All projects with their sizes."""
        return pb.ListProjectsReply(projects=[pb.Project(**_facts(p)) for p in await self._coordinator.projects()])

    async def Invite(self, request: pb.InviteRequest, context: Context) -> pb.InviteReply:  # noqa: ARG002, N802 - gRPC's names
        """A one-time ticket."""
        made = await self._coordinator.invite(request.project, request.name, request.role, request.ttl_seconds)
        await self._noted("invited", request.name, project=request.project, role=request.role or "node")
        return pb.InviteReply(**_facts(made))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesReply:  # noqa: ARG002, N802 - gRPC's names
        """The sites of a project, or all."""
        return pb.ListNodesReply(nodes=[_node(site) for site in await self._coordinator.sites(request.project)])

    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeReply:  # noqa: ARG002, N802 - gRPC's names
        """Shut a member out and cut its stream."""
        await self._coordinator.revoke(request.name, caller().name)
        await self._noted("shut out", request.name)
        return pb.RevokeReply()

    async def SubmitRun(self, request: pb.SubmitRunRequest, context: Context) -> pb.RunInfo:  # noqa: ARG002, N802 - gRPC's names
        """Start a run."""
        info = await self._coordinator.submit(request.project, request.plan, request.bundle, request.key)
        await self._noted("run submitted", info.run, project=request.project, app=request.bundle)
        return pb.RunInfo(**_facts(info))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsReply:  # noqa: ARG002, N802 - gRPC's names
        """Runs, newest first."""
        return pb.ListRunsReply(runs=[pb.RunInfo(**_facts(info)) for info in await self._coordinator.runs(request.project)])

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.RunDetail:  # noqa: ARG002, N802 - gRPC's names
        """One run with its record so far."""
        detail = await self._coordinator.detail(request.run)
        return pb.RunDetail(info=pb.RunInfo(**_facts(detail.info)), record=detail.record, model=detail.model, schema=detail.schema)

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
        info = await self._coordinator.steer(request.run, request.action, request.reason, caller().name)
        await self._noted(f"run {request.action}", info.run, reason=request.reason)
        return pb.RunInfo(**_facts(info))

    async def Post(self, request: pb.PostRequest, context: Context) -> pb.PostReply:  # noqa: ARG002, N802 - gRPC's names
        """Letters from the leader of a run."""
        courier = self._coordinator.engine.courier(request.run)
        await courier.lead(caller().name)
        return pb.PostReply(missing=await courier.post(list(map(letter_from_proto, request.letters))))

    async def Collect(self, request: pb.CollectRequest, context: Context) -> AsyncIterator[pb.Reply]:  # noqa: ARG002, N802 - gRPC's names
        """Who takes part, then all replies from ``after`` on, as they come."""
        courier = self._coordinator.engine.courier(request.run)
        await courier.lead(caller().name)
        await self._noted("run led", request.run)
        yield pb.Reply(members=await collection.members(courier))
        collecting = collection.replies(courier, request.after)
        try:
            async for reply in collecting:
                parts = reply_to_proto(reply, courier.book.content(reply) if reply.digest else iter([b""]))
                while part := await asyncio.to_thread(next, parts, None):
                    yield part
        finally:
            await collecting.aclose()

    async def Conclude(self, request: pb.ConcludeRequest, context: Context) -> pb.RunInfo:  # noqa: ARG002, N802 - gRPC's names
        """The leader of a run has come to its end; the first time counts."""
        if not (info := await self._coordinator.run(request.run)).finished:
            courier = self._coordinator.engine.courier(request.run)
            await courier.lead(caller().name)
            await courier.conclude(request.reason, metrics_from_text(request.metrics))
            await self._noted("run led to its end", request.run, reason=request.reason)
            info = await self._coordinator.run(request.run)
        return pb.RunInfo(**_facts(info))

    async def _noted(self, action: str, target: str, **facts: str) -> None:
        """Write down what the caller did."""
        await self._coordinator.noted(caller().name, "certificate", action, target, **facts)


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
