"""The audit trail of a coordinator: who did what when, one line of JSON after the other, each with the hash of the one before.

A line that is edited, taken out, put elsewhere or added in between breaks the chain, and ``verify`` says where. An end that
was cut off does not; for that there is the head, number and hash of the last line: it stands in a file of its own, in the
server's log, and wherever somebody notes it. Each line is on the disk before the action is answered.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fedscale import files
from fedscale.errors import ConfigError, RunFailed, Unreachable

NAME = "audit.jsonl"
CONTEXT = b"fedscale/audit/v1\0"
ORIGIN = hashlib.sha256(CONTEXT).hexdigest()
TAIL_BYTES, PIECE_BYTES = 64 << 10, 1 << 20
LONGEST = 200
LOOK = "look at it: fedscale audit verify"
Head: TypeAlias = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Deed:
    """One line.

    Args:
        seq: its number, from 1.
        at: when, in ISO 8601.
        who: the account, the certificate's name, or ``system user NAME`` at the command line.
        door: by which it came in: ``dashboard``, ``certificate`` or ``command line``.
        action: what was done, such as ``run submitted``.
        target: to what.
        facts: what belongs to it; never a secret.
        previous: SHA-256 of the line before.
        digest: of this one.
    """

    seq: int
    at: str
    who: str
    door: str
    action: str
    target: str
    facts: Mapping[str, Any]
    previous: str
    digest: str

    def hashed(self) -> str:
        """The digest that everything it says comes to."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "digest"}
        return hashlib.sha256(CONTEXT + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
            # A head that is behind the file is what a crash leaves, one that is ahead is not.
            if noted and (noted[0] > seq or (noted[0] == seq and noted[1] != digest)):
                why = f"line {noted[0]} was noted, the last one is {seq}" if noted[0] > seq else f"line {seq} is another than the one that was noted"
                raise ConfigError("the audit trail ends before the head that was noted", where=str(self.path), why=why, hint=LOOK)
            at = self._now().isoformat(timespec="milliseconds")
            deed = Deed(seq + 1, at, who[:LONGEST], door, action, target[:LONGEST], facts, digest, "")
            deed = Deed(**{**asdict(deed), "digest": deed.hashed()})
            _append(descriptor, json.dumps(asdict(deed), separators=(",", ":")).encode() + b"\n")
            files.write(self.path.with_suffix(".head"), f"{deed.seq}:{deed.digest}\n".encode())
        self._tell(deed)
        return deed

    def insist(self, who: str, door: str, action: str, target: str = "", **facts: Any) -> Deed:
        """As ``note``, for whatever is not to happen unless it stands there.

        Raises:
            Unreachable: the disk refuses, or the trail is damaged.
        """
        try:
            return self.note(who, door, action, target, **facts)
        except (OSError, ConfigError) as error:
            raise Unreachable("the audit trail cannot be written", why=str(error), hint="see: fedscale audit verify") from None

    def read(self) -> Iterator[Deed]:
        """All lines, the oldest first; one that was cut off by a crash was never answered for and is none.

        Raises:
            ConfigError: a line is none of a trail.
        """
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            # Not a line further: what is half there may be whole by then, and its rest is no line.
            whole = takewhile(lambda line: line.endswith(b"\n"), file)
            yield from (_deed(line, at, self.path) for at, line in enumerate(whole, 1))

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
            deeds = (_deed(line, 0, self.path) for line in _backwards(file, _end(file, before, self.path)))
            return list(islice((deed for deed in deeds if (not before or deed.seq < before) and who in ("", deed.who)), count))
        return []

    def verify(self, known: Head | None = None) -> Head:
        """Check every line, the chain and its end; returns the head. Lines of which not a byte has changed since this did are not read one by one.

        Args:
            known: a head that was noted earlier and that the trail must still contain.

        Raises:
            RunFailed: with the first thing that is wrong.
            ConfigError: a line is none of a trail.
        """
        heads = [head for head in (known, self._noted()) if head]  # before the lines, to which somebody may be adding
        last, problem = (0, ORIGIN), ""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            size, digest, last = self._checked
            content = _hashed(file, size)
            if content.digest() != digest or any(head[0] <= last[0] and head != last for head in heads):
                size, content, last = file.seek(0), hashlib.sha256(), (0, ORIGIN)
            for line in takewhile(lambda line: line.endswith(b"\n"), file):
                deed = _deed(line, last[0] + 1, self.path)
                problem = _flaw(deed, last) or _other(deed, heads)
                if problem:
                    break
                last, size = (deed.seq, deed.digest), size + len(line)
                content.update(line)
            self._checked = size, content.digest(), last
        problem = problem or next((f"it ends with line {last[0]}, and had {number}" for number, _ in heads if number > last[0]), "")
        if problem:
            raise RunFailed("the audit trail does not verify", where=str(self.path), why=problem, hint="compare it with the server's log, or a copy")
        return last

    def _noted(self) -> Head | None:
        """What the file beside the trail says of its end."""
        try:
            return head_of(self.path.with_suffix(".head").read_text(encoding="ascii").strip())
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


def head_of(text: str) -> Head:
    """Read ``NUMBER:HASH``.

    Raises:
        ConfigError: anything else.
    """
    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(digest) == 64):
        raise ConfigError("the end of an audit trail is written NUMBER:HASH", where="--head", hint="as 'fedscale audit verify' prints it")
    return int(number), digest


def _append(descriptor: int, line: bytes) -> None:
    """Add a whole line, durably, or nothing."""
    size = os.fstat(descriptor).st_size
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)


def _last(descriptor: int, path: Path) -> Head:
    """Number and hash of the last line; a line that was cut off by a crash was never answered for, and goes."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, TAIL_BYTES, max(size - TAIL_BYTES, 0))
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        os.ftruncate(descriptor, size - len(tail) + len(whole))
    if not whole:
        return 0, ORIGIN
    deed = _deed(whole.splitlines()[-1], 0, path)
    return deed.seq, deed.digest


def _deed(line: bytes, number: int, path: Path) -> Deed:
    """Read one line.

    Raises:
        ConfigError: it is none.
    """
    try:
        return Deed(**json.loads(line))
    except (ValueError, TypeError):
        where = f"{path}:{number}" if number else str(path)
        raise ConfigError("this is no line of an audit trail", where=where, hint=LOOK) from None


def _hashed(file: BinaryIO, size: int) -> Any:
    """The SHA-256 of so many bytes that come next, to go on with."""
    content = hashlib.sha256()
    while size > 0 and (piece := file.read(min(size, PIECE_BYTES))):
        content.update(piece)
        size -= len(piece)
    return content


def _flaw(deed: Deed, last: Head) -> str:
    """Why a line cannot stand behind the last one; empty when it can."""
    if deed.seq != last[0] + 1:
        return f"line {last[0] + 1} is missing or stands elsewhere"
    if deed.digest != deed.hashed():
        return f"line {deed.seq} was edited"
    return "" if deed.previous == last[1] else f"line {deed.seq} does not follow the one before it"


def _other(deed: Deed, heads: Iterable[Head]) -> str:
    """That a line is not the one that was noted under its number; empty when it is."""
    return next((f"line {deed.seq} is another than the one that was noted" for head in heads if head[0] == deed.seq and head[1] != deed.digest), "")


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
        if _deed(file.readline(), 0, path).seq < before:
            low = middle
        else:
            high = begins
    return high
