"""Errors of ours across a call: packed into the trailing metadata by the server, raised again by whoever called."""

from __future__ import annotations

import json

from fedscale import errors
from fedscale.errors import FedscaleError, ProtocolError

ERROR_KEY, RETRY_KEY = "fedscale-error-bin", "retry-after-ms"
LONGEST = 4000
# The hint where no call comes through because one side takes the other's certificate for early or late.
CLOCK = "compare the clocks of both machines, by: date --utc"
PARTS = ("what", "where", "why", "hint")


def packed(error: FedscaleError) -> tuple[str, bytes]:
    """An error as one pair of metadata: its class by name, and its words."""
    return ERROR_KEY, json.dumps({"type": type(error).__name__, **{part: getattr(error, part) for part in PARTS}}).encode()


def unpacked(sent: bytes | str | None) -> FedscaleError | None:
    """The error in a value of metadata, each text cut to ``LONGEST`` characters; ``None`` when there is none that can be read.

    A class that this release does not have becomes a ``ProtocolError``; a name never reaches anything but our errors.
    """
    try:
        told = json.loads(sent or "")
        kind = getattr(errors, told["type"], None)
        what, where, why, hint = (told[part][:LONGEST] + "" for part in PARTS)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    ours: type[FedscaleError] = kind if isinstance(kind, type) and issubclass(kind, FedscaleError) else ProtocolError
    return ours(what, where=where, why=why, hint=hint)
