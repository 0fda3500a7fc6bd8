"""Where a node stands with its coordinator: whether that is there, and takes the node's certificate."""

from __future__ import annotations

import grpc

from fedscale.errors import AccessDenied, FedscaleError, Unreachable
from fedscale.proto.v1 import bulk_pb2 as pb
from fedscale.wire.codec import OFFSET
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome, NodeSettings
from fedscale_client.rpc import error_of

REJOIN = "ask the coordinator; a revoked node joins again with a new ticket: fedscale node join TICKET"


def refusal(home: NodeHome, seconds: float) -> FedscaleError | None:
    """What keeps a node from its coordinator; ``None`` when the one that leads takes its certificate.

    Args:
        home: the node's home.
        seconds: how long each coordinator has for its answer.

    Raises:
        ConfigError: the node has not joined, or a file of its home cannot be read.
    """
    credentials, found = Credentials.of(home), None
    for settings in home.servers():
        found = _asked(settings, credentials, seconds)
        if not isinstance(found, Unreachable):
            break
    return found


def _asked(settings: NodeSettings, credentials: Credentials, seconds: float) -> FedscaleError | None:
    """What one coordinator says to a question that costs nothing: how much it has of an answer that there is not."""
    secure = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
    override = [("grpc.ssl_target_name_override", settings.server_name)] if settings.server_name else []
    with grpc.secure_channel(settings.address, secure, override) as channel:
        ask: grpc.UnaryUnaryMultiCallable[pb.OffsetRequest, pb.OffsetReply] = channel.unary_unary(
            OFFSET, pb.OffsetRequest.SerializeToString, pb.OffsetReply.FromString
        )
        try:
            ask(pb.OffsetRequest(), timeout=seconds)
        except grpc.RpcError as error:
            told = error_of(error, settings.address)
            # Whatever else it finds wrong with the question, it let this node ask.
            return told if isinstance(told, AccessDenied | Unreachable) else None
    return None
