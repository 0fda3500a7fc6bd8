"""Answers that are arriving: what came before a break stays, and the next attempt goes on from there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedscale import files
from fedscale.errors import ProtocolError, Unreachable
from fedscale.ring import Extremes
from fedscale.wire.codec import Intake
from fedscale_server import vault

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

# What is enciphered at once stays in the processor's cache, and its room is one that the heap has at hand.
BLOCK = 1 << 18
# So much is handed to the disk at a time, while more arrives.
STRIDE = 8 << 20


@dataclass(frozen=True, slots=True)
class Arrived:
    """An answer that has arrived completely.

    Args:
        path: where it is staged; whoever takes it uses it up.
        digest: SHA-256 in hex.
        schema: of a first model, as JSON.
        head: the end of the node's ledger; empty where it tells none.
        seen: the extremes of its coordinates, where they are to be checked.
    """

    path: Path
    digest: str
    schema: str = ""
    head: str = ""
    seen: Extremes | None = None


class Upload:
    """One attempt to receive an answer. All methods block.

    Args:
        path: where its bytes go; what an earlier attempt has left there is its beginning.
        size: exact number of bytes.
        digest: SHA-256 in hex of the whole.
        offset: how many bytes the sender leaves out, for they are here.
        cipher: the key stream under which they lie on disk; ``None`` for what nobody has to hide.
        lasting: whether the whole is to survive a power cut.
        seen: is shown all of it in the clear.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        digest: str,
        offset: int,
        cipher: CipherContext | None,
        *,
        lasting: bool = True,
        seen: Extremes | None = None,
    ) -> None:
        self._path, self._cipher, self._size, self._offset, self._lasting = path, cipher, size, offset, lasting
        self._seen = seen
        self._begun = self._end = offset
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
        self._intake = Intake(self, size, digest)

    def resume(self) -> None:
        """Take in what is here already, before anything else.

        Raises:
            Unreachable: it is less than the sender thinks.
        """
        if arrived(self._path) < self._offset:
            raise Unreachable("an upload does not begin where the last one ended", where=self._path.name, hint="ask for the offset again")
        self._file.truncate(self._offset)
        while block := self._file.read(BLOCK):
            plain = self._passed(block)
            self._intake.known(plain)
            self._see(plain)

    def write(self, frame: bytes | memoryview) -> None:
        """Append what ``take`` has checked."""
        self._see(frame)
        whole = memoryview(frame)
        for start in range(0, len(whole), BLOCK):
            view = self._passed(whole[start : start + BLOCK])
            while view:
                written = self._file.write(view)
                view, self._end = view[written:], self._end + written
        if self._lasting and self._end - self._begun >= STRIDE:
            files.begin_sync(self._file.fileno(), self._begun, self._end - self._begun)
            self._begun = self._end

    def take(self, frame: bytes | memoryview) -> None:
        """Keep one frame; a disk that refuses, or a stream that is too long, costs everything that has arrived.

        Raises:
            ProtocolError: more bytes than announced.
            Unreachable: the disk refuses.
        """
        try:
            self._intake.take(frame)
        except ProtocolError:
            self.drop()
            raise
        except OSError as error:
            self.drop()
            raise Unreachable("the server cannot store an answer", why=error.strerror or type(error).__name__) from None

    def done(self, target: Path) -> None:
        """Hand the whole over as ``target``, on disk if it is to last.

        Raises:
            ProtocolError: it is not what was announced; where it is less, it stays.
            Unreachable: the same, but its beginning is of an earlier attempt, so it is worth another one.
            OSError: the disk refuses.
        """
        try:
            self._intake.done()
        except ProtocolError as error:
            # Of a sender that goes away in the middle, all that may be seen is that its stream ends: what is here is a beginning.
            if self._end < self._size:
                raise
            self.drop()
            if self._offset:
                raise Unreachable("an answer does not fit its beginning", why=error.what, hint="send all of it again") from None
            raise
        if self._lasting:
            os.fsync(self._file.fileno())
        self._path.replace(target)

    def drop(self) -> None:
        """Give up what has arrived."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the attempt; what has arrived stays."""
        self._file.close()

    def _see(self, part: bytes | memoryview) -> None:
        """Show what goes by to whoever wants to see it."""
        if self._seen:
            self._seen.see(part)

    def _passed(self, data: bytes | memoryview) -> memoryview:
        """Through the cipher, which knows no direction."""
        if self._cipher is None:
            return memoryview(data)
        # Not kept, for hundreds of uploads may be open; and not filled with zeros first, as a bytearray is.
        room = np.empty(len(data) + vault.BLOCK, np.uint8).data
        return room[: self._cipher.update_into(data, room)]


def arrived(path: Path) -> int:
    """How many bytes of an upload are here."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
