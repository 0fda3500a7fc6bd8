"""Errors of ours as HTTP statuses and JSON; no value that somebody sent ever stands in one."""

from __future__ import annotations

from typing import Any

from fedscale import errors
from fedscale.errors import ConfigError, FedscaleError

STATUS: dict[type[FedscaleError], int] = {
    errors.AccessDenied: 403,
    errors.TicketError: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.PolicyRefusal: 409,
    errors.Unreachable: 503,
}


def body(error: FedscaleError) -> dict[str, Any]:
    """An error as the command line's ``--json`` shows it."""
    facts = {name: getattr(error, name) for name in ("what", "where", "why", "hint")}
    return {"error": {"type": type(error).__name__, **facts}}


def malformed(problems: Any) -> ConfigError:
    """The first problem of a request that does not have the right form."""
    first = problems[0] if problems else {}
    where = ".".join(str(part) for part in first.get("loc", ()))
    return ConfigError("the request is malformed", where=where, why=str(first.get("msg", "")).lower())
