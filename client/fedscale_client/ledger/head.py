"""The head: number and hash of the ledger's last entry, kept in a file of its own and only ever moved forward.

A ledger that ends before its head was rolled back or cut. The same file may be kept a second time on other storage, so
that a restored backup of the whole home is noticed too.
"""

from __future__ import annotations

import fcntl
import json
import re
from dataclasses import dataclass
from pathlib import Path

from fedscale import files
from fedscale.errors import ConfigError
from fedscale_client.home import open_private
from fedscale_client.ledger.chain import Signer

RESTORE = "bring the newer ledger back; where it is lost, lower the caps by what it may have held, and ask for a new ticket to join again with"
LOOK = "look at it with: fedscale privacy ledger --verify; go on only when you know what happened"


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry as far as a file knows: its number and hash."""

    seq: int
    digest: str

    def __str__(self) -> str:
        """As it is told to others: ``NUMBER:HASH``."""
        return f"{self.seq}:{self.digest}"

    def misfit(self, digest: str | None) -> str:
        """What is wrong with a ledger whose entry of this number has that hash, or that has no such entry; empty when nothing is."""
        if digest is None:
            return f"the ledger ends before entry {self.seq}, which it had: it was cut or rolled back"
        return "" if digest == self.digest else f"entry {self.seq} is not the one it was"

    @classmethod
    def parsed(cls, text: str, where: str = "") -> Head:
        """Read ``NUMBER:HASH``.

        Raises:
            ConfigError: anything else.
        """
        match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
        if not match:
            raise ConfigError("the end of a ledger is written NUMBER:HASH", where=where, hint="as 'fedscale privacy ledger --verify' prints it")
        return cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True)
class HeadFile:
    """A file that remembers the head, signed."""

    path: Path
    signer: Signer

    def read(self) -> Head | None:
        """The head; ``None`` when there is no file, or none that this site has signed."""
        try:
            tree = json.loads(self.path.read_bytes())
            head, signature = Head(int(tree["seq"]), str(tree["digest"])), str(tree["signature"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return head if self.signer.signed(_bound(head), signature) else None

    def begin(self) -> None:
        """Make the file for a ledger without entries."""
        self._write(Head(0, self.signer.origin))

    def advance(self, head: Head) -> None:
        """Remember a later head; an earlier one changes nothing, whichever process comes last.

        Raises:
            ConfigError: the file is gone or was changed; making it anew would hide why.
            OSError: the disk refuses.
        """
        with open_private(self.path.with_suffix(".lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.read()
            if known is None:
                raise ConfigError("the head of the ledger is gone or was changed", where=str(self.path))
            if known.seq < head.seq:
                self._write(head)

    def _write(self, head: Head) -> None:
        tree = {"seq": head.seq, "digest": head.digest, "signature": self.signer.sign(_bound(head))}
        files.write(self.path, json.dumps(tree).encode())


def _bound(head: Head) -> str:
    """Number and hash together, as hex to be signed."""
    return f"{head.seq:016x}{head.digest}"
