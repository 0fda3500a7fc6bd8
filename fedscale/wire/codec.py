"""Bulk data as frames of raw bytes: hashed on the way, length-checked before anything is kept.

On the wire a frame carries its seal in front, so that one that was damaged on its way costs itself and not the whole. It is
GMAC under a key that everybody knows: a checksum of 128 bits, which processors compute five times as fast as CRC-32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeVar

from fedscale.errors import ProtocolError, Unreachable
from fedscale.wire.limits import FRAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FETCH = "/fedscale.v1.Frames/Fetch"
SUBMIT = "/fedscale.v1.Frames/Submit"
PUT = "/fedscale.v1.Frames/Put"
OFFSET = "/fedscale.v1.Frames/Offset"
TASK_KEY, DIGEST_KEY, SIZE_KEY, SCHEMA_KEY = "fedscale-task", "fedscale-digest", "fedscale-size", "fedscale-schema-bin"
OFFSET_KEY, LEDGER_KEY, RUN_KEY = "fedscale-offset", "fedscale-ledger", "fedscale-run"
SEAL, NONCE = 16, 12
Frame = TypeVar("Frame", bytes, memoryview)


def sealed(frame: bytes | memoryview) -> bytes:
    """A frame as it travels: its seal and what that vouches for."""
    return b"".join((_seal(frame), frame))


def unsealed(sent: bytes) -> bytes:
    """What a frame carries; empty if it was damaged on its way, for what reads a stream must not raise inside gRPC."""
    view = memoryview(sent)[SEAL:]
    return bytes(view) if _seal(view) == sent[:SEAL] else b""


def intact(frame: Frame) -> Frame:
    """A frame as ``unsealed`` gave it.

    Raises:
        Unreachable: it was damaged; whoever sends goes on from the last one that arrived.
    """
    if not frame:
        raise Unreachable("a frame was damaged on its way", why="its seal differs", hint="send it again")
    return frame


def opened(sent: bytes) -> memoryview:
    """What a frame carries, not copied: for those who take frames as they travelled, and check them in a thread.

    Raises:
        Unreachable: it was damaged.
    """
    view = memoryview(sent)[SEAL:]
    return intact(view if _seal(view) == sent[:SEAL] else view[:0])


@cache
def _sealer() -> AESGCM:
    """What computes seals; loaded when there is the first one, for commands that move nothing do without."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(bytes(SEAL))


def _seal(frame: bytes | memoryview) -> bytes:
    """16 bytes: the tag of a message that is empty but for what it vouches for."""
    return _sealer().encrypt(bytes(NONCE), b"", frame)


def frames(data: bytes | memoryview, offset: int = 0) -> Iterator[bytes]:
    """Cut data into frames of at most ``FRAME`` bytes, from ``offset`` on."""
    view = memoryview(data).cast("B")
    for start in range(offset, len(view), FRAME):
        yield bytes(view[start : start + FRAME])


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append all of them."""


class Intake:
    """Receives the frames of one blob of a size and digest known beforehand into a file.

    Args:
        file: where the bytes go, opened for writing.
        size: exact number of bytes.
        digest: SHA-256 in hex of the whole.
    """

    def __init__(self, file: Sink, size: int, digest: str) -> None:
        self._file, self._left, self._digest, self._hash = file, size, digest, hashlib.sha256()

    def known(self, part: bytes | memoryview) -> None:
        """Count bytes that are in the file already, from an earlier attempt.

        Raises:
            ProtocolError: more bytes than announced.
        """
        self._left -= len(part)
        if self._left < 0:
            raise ProtocolError("a stream is longer than it announced")
        self._hash.update(part)

    def take(self, frame: bytes | memoryview) -> None:
        """Write one frame.

        Raises:
            ProtocolError: more bytes than announced.
        """
        self.known(frame)
        self._file.write(frame)

    def done(self) -> None:
        """Check that all is there and is what was announced.

        Raises:
            ProtocolError: too short, or another content.
        """
        if self._left:
            raise ProtocolError(f"a stream ended {self._left} bytes too early")
        if self._hash.hexdigest() != self._digest:
            raise ProtocolError("a stream does not have the content it announced", why="its SHA-256 differs")
