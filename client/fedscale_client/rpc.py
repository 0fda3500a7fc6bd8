"""Channels to the server, and what their failures mean."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio

from fedscale.errors import AccessDenied, Conflict, FedscaleError, NotFound, ProtocolError, Unreachable
from fedscale.wire.faults import CLOCK, ERROR_KEY, RETRY_KEY, unpacked
from fedscale.wire.limits import CHANNEL_OPTIONS
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeSettings

LEAST_PAUSE, MOST_PAUSE = 0.1, 5.0
MOST_RETRY_AFTER = 60.0
LONGEST = 400

CallError: TypeAlias = grpc.RpcError | TimeoutError

PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
KINDS: Mapping[grpc.StatusCode, type[FedscaleError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    **dict.fromkeys(PASSING, Unreachable),
}

# What gRPC says about a connection that failed, in the words of the person who has to mend it.
REASONS = {
    "refused": "nothing listens there",
    "certificate is not yet valid": "by this machine's clock the server's certificate is not valid yet",
    "certificate has expired": "by this machine's clock the server's certificate has expired",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not the federation's",
    "handshake": "the TLS handshake failed",
    "Hostname Verification": "the server's certificate is for another host",
    "name resolution": "the host name is not known",
    "Domain name": "the host name is not known",
    "DNS": "the host name is not known",
    "Socket closed": "the server closed the connection: it stops, or by its clock this node's certificate is not valid",
    "unreachable": "there is no way to that network",
    "Deadline": "no answer in time",
    "Timeout": "no answer in time",
}
RELEASES = "update the one of both that is older; the coordinator first"
REACH = "check the address, the network and the firewall; only an outbound connection to that port is needed"


def open_channel(settings: NodeSettings, credentials: Credentials, *, name: str) -> grpc.aio.Channel:
    """A channel over mTLS; channels of different names never share a connection, so bulk data cannot hold up heartbeats."""
    secure = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
    override = (("grpc.ssl_target_name_override", settings.server_name),) if settings.server_name else ()
    options = (*CHANNEL_OPTIONS, *override, ("fedscale.channel", name), ("grpc.use_local_subchannel_pool", 1))
    return grpc.aio.secure_channel(settings.address, secure, options)


def error_of(error: CallError, address: str) -> FedscaleError:
    """What a failed call means: the error the server raised, or the nearest one of ours."""
    if isinstance(error, TimeoutError):
        return Unreachable("the server does not answer", where=address, why="no answer in time", hint=REACH)
    if raised := unpacked(_metadata(error).get(ERROR_KEY)):
        return raised
    kind, details = KINDS.get(error.code(), ProtocolError), error.details() or ""
    if kind is Unreachable:
        reason = next((reason for sign, reason in REASONS.items() if sign.lower() in details.lower()), error.code().name.lower().replace("_", " "))
        return Unreachable("the server cannot be reached", where=address, why=reason, hint=CLOCK if "clock" in reason else REACH)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolError("the server does not know what this node asks of it", where=address, why="it runs another release", hint=RELEASES)
    return kind(details[:LONGEST] or f"the server answered {error.code().name}", where=address)


def is_passing(error: CallError) -> bool:
    """Whether trying again later may help."""
    return isinstance(error, TimeoutError) or error.code() in PASSING


def pause(attempt: int, error: CallError | None = None) -> float:
    """Seconds before the next attempt: exponential with jitter, or what the server asked for with jitter on top."""
    jitter = random.SystemRandom().uniform(0.5, 1.0)
    if isinstance(error, grpc.RpcError) and str(asked := _metadata(error).get(RETRY_KEY, "")).isdecimal():
        return min(float(asked) / 1000, MOST_RETRY_AFTER) * (0.5 + jitter)
    return min(MOST_PAUSE, LEAST_PAUSE * 2.0 ** min(attempt, 16)) * jitter


def _metadata(error: grpc.RpcError) -> dict[str, Any]:
    """The trailing metadata of a failed call."""
    pairs: Any = error.trailing_metadata() or ()
    return dict(pairs)
