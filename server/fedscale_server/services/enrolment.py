"""The enrolment service: trades one-time tickets for certificates, on a port of its own."""

from __future__ import annotations

import asyncio

from fedscale.identity import certificate_pem
from fedscale.proto.v1 import node_pb2, node_pb2_grpc
from fedscale_server.leadership import Leadership
from fedscale_server.registry import Registry
from fedscale_server.services.guard import Context
from fedscale_server.store.tables import Member
from fedscale_server.trail import Trail


class EnrolmentService(node_pb2_grpc.EnrolmentServicer):
    """What a machine without a certificate may ask.

    Args:
        registry: tickets and members.
        address: ``host:port`` of the mTLS port, told to whoever joins.
        leadership: knows the other coordinators, of whom joiners are told too.
        trail: remembers who joined.
    """

    def __init__(self, registry: Registry, address: str, leadership: Leadership, trail: Trail) -> None:
        self._registry, self._address, self._leadership, self._trail = registry, address, leadership, trail

    async def Authority(self, request: node_pb2.AuthorityRequest, context: Context) -> node_pb2.AuthorityReply:  # noqa: ARG002, N802 - gRPC's names
        """The authority's certificate; public."""
        return node_pb2.AuthorityReply(certificate=certificate_pem(self._registry.authority.certificate))

    async def Join(self, request: node_pb2.JoinRequest, context: Context) -> node_pb2.JoinReply:  # noqa: ARG002, N802 - gRPC's names
        """A certificate for a ticket."""
        given = (request.ticket, request.secret, request.name, request.request)
        certificate, member = await asyncio.to_thread(self._registry.join, *given, self._note)
        authority = certificate_pem(self._registry.authority.certificate)
        addresses = [place.address for place in self._leadership.places]
        return node_pb2.JoinReply(
            certificate=certificate,
            authority=authority,
            address=self._address,
            name=member.name,
            project=member.project,
            role=member.role,
            addresses=addresses,
        )

    def _note(self, member: Member) -> None:
        """Write down who is about to join: nobody does of whom the trail does not know."""
        self._trail.insist(member.name, "ticket", "joined", member.project)
