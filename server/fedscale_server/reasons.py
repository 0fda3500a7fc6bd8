"""Why a call of a coordinator failed, in the words of the person who has to mend it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc

from fedscale.errors import AccessDenied, ConfigError, Conflict, FedscaleError, NotFound, ProtocolError, Unreachable
from fedscale.wire.faults import CLOCK, ERROR_KEY, unpacked
from fedscale_server.profile import Profile

KINDS: dict[grpc.StatusCode, type[FedscaleError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.INVALID_ARGUMENT: ConfigError,
}
NAMELESS = "the host name is not known on this machine"
EARLY = "by this machine's clock the coordinator's certificate is not valid yet"
LATE = "by this machine's clock the coordinator's certificate has expired"
CLOSED = "it closed the connection: it stops, or by its clock this profile's certificate is not valid"
HINTS = {NAMELESS: "correct the name, or let this machine know it"} | dict.fromkeys((EARLY, LATE, CLOSED), CLOCK)
REASONS = {
    "Connection refused": "nothing listens there",
    "certificate is not yet valid": EARLY,
    "certificate has expired": LATE,
    "CERTIFICATE_VERIFY_FAILED": "it is not the coordinator this profile was made for",
    "Peer name": "its certificate is for another host",
    "Hostname Verification": "its certificate is for another host",
    "resolution": NAMELESS,
    "resolving": NAMELESS,
    "unreachable": "there is no way to that network",
    "Socket closed": CLOSED,
}


def explained(error: grpc.RpcError, address: str, profile: Profile) -> FedscaleError:
    """What gRPC raised as an error of ours: the coordinator's own where it sent one.

    Args:
        error: of a call.
        address: whom it was to.
        profile: of whoever called.
    """
    call: Any = error
    if raised := unpacked(dict(call.trailing_metadata() or ()).get(ERROR_KEY)):
        return raised
    code, details = call.code(), call.details() or ""
    kind = KINDS.get(code, ProtocolError)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        why, hint = "it runs another release", "update the one of both that is older"
        return ProtocolError("the coordinator does not know this request", where=address, why=why, hint=hint)
    if kind is not Unreachable:
        return kind(f"the coordinator answered with {code.name}", where=address, why=details)
    until, now = _valid_until(profile.certificate), datetime.now(UTC)
    if until < now:
        why = f"it was valid until {until:%Y-%m-%d}, and this machine's clock says {now:%Y-%m-%d}"
        hint = "set the clock, or ask whoever runs the coordinator for a new profile"
        return AccessDenied("this profile's certificate has expired", where=str(profile.folder), why=why, hint=hint)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable("the coordinator does not answer in time", where=address, hint="see its log, or try again")
    why = next((reason for sign, reason in REASONS.items() if sign in details), details)
    return Unreachable("the coordinator cannot be reached", where=address, why=why, hint=HINTS.get(why, "is it running? fedscale server start"))


def _valid_until(certificate: bytes) -> datetime:
    """When a certificate ends; cryptography is loaded for this alone, where a call has failed already."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
