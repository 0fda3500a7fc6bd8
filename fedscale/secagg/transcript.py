"""Hashes and contexts that cannot be mistaken for one another: every part carries its length, every use its label."""

from __future__ import annotations

import hashlib
from functools import lru_cache

PROTOCOL = b"fedscale/secagg/v1"
DIGEST = 32


def frame(label: str, *parts: bytes | int) -> bytes:
    """The protocol's name, a label and the parts, each behind its length in four bytes; integers are eight bytes, big-endian."""
    pieces = [_head(label)]
    for part in parts:
        field = part.to_bytes(8, "big") if isinstance(part, int) else part
        pieces += (len(field).to_bytes(4, "big"), field)
    return b"".join(pieces)


@lru_cache(maxsize=64)
def _head(label: str) -> bytes:
    """What every frame of a label begins with."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in (PROTOCOL, label.encode()))


def digest(label: str, *parts: bytes | int) -> bytes:
    """SHA-256 of ``frame``: 32 bytes."""
    return hashlib.sha256(frame(label, *parts)).digest()
