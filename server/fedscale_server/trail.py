"""The audit trail of a coordinator: who did what when, one line of JSON after the other, each with the hash of the one before.

A line that is edited, taken out, put elsewhere or added in between breaks the chain, and ``verify`` says where. An end that
was cut off does not; for that there is the head, number and hash of the last line: it stands in a file of its own, in the
server's log, and wherever somebody notes it. Each line is on the disk before the action is answered.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO

from fedscale import files
from fedscale.errors import ConfigError, RunFailed, Unreachable
from fedscale_server.deeds import LOOK, ORIGIN, Deed, Head, deed_of, flaw, head_of, line_of, other

NAME = "audit.jsonl"
TAIL_BYTES, PIECE_BYTES = 64 << 10, 1 << 20
LONGEST = 200
MEND = "compare it with the server's log, or a copy; where a new one is to begin, keep this one and its .head elsewhere"
GONE = "the note of where it ends is gone"
UNWRITTEN = "the audit trail cannot be written"


@dataclass(frozen=True, slots=True)
class Author:
    """Who does something, and the door by which they came in."""

    who: str
    door: str


class Trail:
    """The file; several processes may write to it.

    Args:
        home: the coordinator's folder.
        now: the time, for the lines.
        tell: is told each line that has been added.
    """

    def __init__(self, home: Path, now: Callable[[], datetime], tell: Callable[[Deed], object] = lambda _: None) -> None:
        self.path, self._now, self._tell, self._lock = home / NAME, now, tell, threading.Lock()
        self._checked: tuple[int, bytes, Head] = (0, hashlib.sha256().digest(), (0, ORIGIN))  # what verifies: bytes, their SHA-256, their head

    def note(self, who: str, door: str, action: str, target: str = "", **facts: Any) -> Deed:
        """Add a line; durable when it returns.

        Raises:
            ConfigError: the file does not end with a line of a trail, or before the head that was noted: going on would hide it.
            OSError: the disk refuses.
        """
        facts = {name: value[:LONGEST] if isinstance(value, str) else value for name, value in facts.items()}
        with self._lock, self._opened() as descriptor:
            seq, digest = _last(descriptor, self.path)
            noted = self._noted()
            if noted is None and seq > 1:  # a crash can come between the first line and its head
                raise ConfigError("the audit trail cannot be trusted", where=str(self.path.with_suffix(".head")), why=GONE, hint=LOOK)
            # A head that is behind the file is what a crash leaves, one that is ahead is not.
            if noted and (noted[0] > seq or (noted[0] == seq and noted[1] != digest)):
                why = f"line {noted[0]} was noted, the last one is {seq}" if noted[0] > seq else f"line {seq} is another than the one that was noted"
                raise ConfigError("the audit trail ends before the head that was noted", where=str(self.path), why=why, hint=LOOK)
            at = self._now().isoformat(timespec="milliseconds")
            deed = Deed(seq + 1, at, who[:LONGEST], door, action, target[:LONGEST], facts, digest, "")
            deed = Deed(**{**asdict(deed), "digest": deed.hashed()})
            size = _append(descriptor, line_of(deed))
            try:
                files.write(self.path.with_suffix(".head"), f"{deed.seq}:{deed.digest}\n".encode())
            except OSError:
                if self._noted() == noted:  # else the head is ahead of the trail for ever
                    os.ftruncate(descriptor, size)  # what is refused now does not happen, so it must not stand there
                raise
        self._tell(deed)
        return deed

    def insist(self, who: str, door: str, action: str, target: str = "", **facts: Any) -> Deed:
        """As ``note``, for whatever is not to happen unless it stands there.

        Raises:
            Unreachable: the disk refuses, or the trail is damaged.
        """
        try:
            return self.note(who, door, action, target, **facts)
        except OSError as error:
            raise Unreachable(
                "the audit trail cannot be written", why=error.strerror or "", hint="see to the coordinator's disk, and try again"
            ) from None
        except ConfigError as error:
            raise Unreachable(UNWRITTEN, why=str(error), hint="see: fedscale audit verify") from None

    def read(self) -> Iterator[Deed]:
        """All lines, the oldest first; one that was cut off by a crash was never answered for and is none.

        Raises:
            ConfigError: a line is none of a trail.
        """
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            # Not a line further: what is half there may be whole by then, and its rest is no line.
            whole = takewhile(lambda line: line.endswith(b"\n"), file)
            yield from (deed_of(line, at, self.path) for at, line in enumerate(whole, 1))

    def newest(self, count: int, before: int = 0, who: str = "") -> list[Deed]:
        """Some lines, the newest first; of a long trail no more is read than it takes.

        Args:
            count: how many at most.
            before: only lines with a smaller number; 0 for all.
            who: only lines of this one.

        Raises:
            ConfigError: a line is none of a trail.
        """
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            deeds = (deed_of(line, 0, self.path) for line in _backwards(file, _end(file, before, self.path)))
            return list(islice((deed for deed in deeds if (not before or deed.seq < before) and who in ("", deed.who)), count))
        return []

    def verify(self, known: Head | None = None) -> Head:
        """Check every line, the chain and its end; returns the head. Lines of which not a byte has changed since this did are not read one by one.

        Args:
            known: a head that was noted earlier and that the trail must still contain.

        Raises:
            RunFailed: with the first thing that is wrong.
        """
        try:
            last, problem = self._verified(known)
        except ConfigError as error:
            raise RunFailed("the audit trail does not verify", where=error.where, why=error.what, hint=MEND) from None
        if problem:
            raise RunFailed("the audit trail does not verify", where=str(self.path), why=problem, hint=MEND)
        return last

    def _verified(self, known: Head | None) -> tuple[Head, str]:
        """The end of what verifies, and what is wrong behind it; empty when nothing is."""
        noted = self._noted()  # before the lines, to which somebody may be adding
        heads = [head for head in (known, noted) if head]
        last, problem = (0, ORIGIN), ""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            size, digest, last = self._checked
            content = _hashed(file, size)
            if content.digest() != digest or any(head[0] <= last[0] and head != last for head in heads):
                size, content, last = file.seek(0), hashlib.sha256(), (0, ORIGIN)
            for line in takewhile(lambda line: line.endswith(b"\n"), file):
                deed = deed_of(line, last[0] + 1, self.path)
                problem = flaw(deed, last) or other(deed, heads) or ("" if line == line_of(deed) else f"line {deed.seq} is not as it was written")
                if problem:
                    break
                last, size = (deed.seq, deed.digest), size + len(line)
                content.update(line)
            self._checked = size, content.digest(), last
        problem = problem or next((f"it ends with line {last[0]}, and had {number}" for number, _ in heads if number > last[0]), "")
        return last, problem or (GONE if noted is None and last[0] > 1 else "")

    def _noted(self) -> Head | None:
        """What the file beside the trail says of its end.

        Raises:
            ConfigError: it says none.
        """
        try:
            noted = self.path.with_suffix(".head")
            return head_of(noted.read_text(encoding="ascii", errors="replace").strip(), str(noted))
        except FileNotFoundError:
            return None

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, to be added to, by nobody else at the same time."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _append(descriptor: int, line: bytes) -> int:
    """Add a whole line, durably, or nothing; the size before."""
    size = os.fstat(descriptor).st_size
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)
    return size


def _last(descriptor: int, path: Path) -> Head:
    """Number and hash of the last line; a line that was cut off by a crash was never answered for, and goes."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, TAIL_BYTES, max(size - TAIL_BYTES, 0))
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        os.ftruncate(descriptor, size - len(tail) + len(whole))
    if not whole:
        return 0, ORIGIN
    deed = deed_of(whole.splitlines()[-1], 0, path)
    return deed.seq, deed.digest


def _hashed(file: BinaryIO, size: int) -> Any:
    """The SHA-256 of so many bytes that come next, to go on with."""
    content = hashlib.sha256()
    while size > 0 and (piece := file.read(min(size, PIECE_BYTES))):
        content.update(piece)
        size -= len(piece)
    return content


def _backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines before a place where one ends, the last one first."""
    rest = b""
    while end:
        start = max(end - TAIL_BYTES, 0)
        file.seek(start)
        rest, *lines = (file.read(end - start) + rest).splitlines(keepends=True)
        yield from reversed(lines)
        end = start
    if rest:
        yield rest


def _end(file: BinaryIO, before: int, path: Path) -> int:
    """Where the lines with a smaller number end, and perhaps some more; for 0 where all do. By bisection: numbers rise with the place."""
    low, size = 0, file.seek(0, os.SEEK_END)
    high = file.seek(max(size - TAIL_BYTES, 0))
    high += file.read().rfind(b"\n") + 1  # a line that was cut off by a crash is none
    while before and high - low > TAIL_BYTES:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        begins = file.tell()
        if begins >= high:
            break
        if deed_of(file.readline(), 0, path).seq < before:
            low = middle
        else:
            high = begins
    return high
