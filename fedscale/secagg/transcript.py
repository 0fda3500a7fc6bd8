"""Hashes and contexts that cannot be mistaken for one another: every part carries its length, every use its label."""

from __future__ import annotations

import hashlib

PROTOCOL = b"fedscale/secagg/v1"
DIGEST = 32


def frame(label: str, *parts: bytes | int) -> bytes:
    """The protocol's name, a label and the parts, each behind its length in four bytes; integers are eight bytes, big-endian."""
    fields = [PROTOCOL, label.encode(), *(part.to_bytes(8, "big") if isinstance(part, int) else part for part in parts)]
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def digest(label: str, *parts: bytes | int) -> bytes:
    """SHA-256 of ``frame``: 32 bytes."""
    return hashlib.sha256(frame(label, *parts)).digest()
