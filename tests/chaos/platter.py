"""A disk that forgets: what a server's files would be after a power cut at any moment, and calls that fail when they are told to.

Everything below one folder is watched through the functions of ``os`` and ``io`` that Python's files are made of. What survives a
power cut for certain is the content of files that were synced, under names whose folder was synced afterwards; whatever
else has happened may have survived, in whole or in part. The database's own commits are taken at their word.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from fedscale_server.store.store import Store

CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
DATABASE = "server.db"


class Cut(StrEnum):
    """What a power cut leaves of what was not synced."""

    NOTHING = "nothing"
    TORN = "torn"
    EVERYTHING = "everything"
    ANYHOW = "anyhow"


SURE = (Cut.NOTHING, Cut.TORN, Cut.EVERYTHING)  # what they leave does not depend on chance
SECTOR = 8  # bytes that are written whole or not at all; as few as the files here are small


@dataclass(frozen=True)
class Remains:
    """What is found after a power cut: files by name, ``None`` for folders, and what the world had been told by then."""

    how: Cut
    after: str
    files: dict[str, bytes | None]
    database: bytes
    told: tuple[Any, ...]

    def lay_out(self, folder: Path) -> None:
        """Write them into a folder that has the rest already."""
        for name, content in self.files.items():
            path = folder / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.write_bytes(content)
        (folder / DATABASE).write_bytes(self.database)


@dataclass
class Platter:
    """A watched folder.

    Args:
        root: the folder; what is in it at first is durable.
        parts: names of the folders in it that are watched.
        grave: a folder of the same file system, where files that are removed are held, so that no number is given twice.
        chance: what becomes of each write that was not synced where a cut leaves it to chance.
    """

    root: Path
    parts: tuple[str, ...]
    grave: Path
    chance: random.Random = field(default_factory=random.Random)
    told: list[Any] = field(default_factory=list)
    remains: dict[str, Remains] = field(default_factory=dict)
    trail: list[tuple[str, str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    fail: tuple[int, int] = (0, 0)
    failed: bool = False
    hows: tuple[Cut, ...] = ()
    _synced: dict[int, bytes] = field(default_factory=dict)
    _names: dict[str, dict[str, int]] = field(default_factory=dict)
    _kinds: dict[int, bool] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)
    _lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for part in self.parts:
            for folder, _, names in os.walk(self.root / part):
                self._sync_folder(Path(folder))
                for name in names:
                    self._sync_file(Path(folder, name))

    @contextmanager
    def watched(self, *hows: Cut) -> Iterator[None]:
        """Watch everything that this process does, and note what power cuts of these kinds would leave."""
        self.hows = hows
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "mkdir"), (os, "open"), (io, "open")):
                patch.setattr(module, name, self._watching(getattr(module, name), name))
            yield

    def tell(self, what: Any) -> None:
        """The world has been told something."""
        with self._lock:
            self.told.append(what)

    def _watching(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            path = self._subject(name, given, named)
            if path is None:
                return real(*given, **named)
            with self._lock:
                self._before(f"{name} {path.relative_to(self.root)}")
                if name in ("unlink", "replace"):
                    self._bury(path if name == "unlink" else Path(given[1]))
                result = real(*given, **named)
                if name == "fsync":
                    (self._sync_folder if path.is_dir() else self._sync_file)(path)
                self.cut(f"after {self.calls[-1]}")
                return result

        return watched

    def _subject(self, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Path | None:
        """The path that a call changes; ``None`` when it is none of ours."""
        if name == "fsync":
            target = str(Path(f"/proc/self/fd/{given[0]}").readlink())
        elif name == "open" and not self._changes(given, named):
            return None
        elif isinstance(given[0], str | os.PathLike):
            target = os.fspath(given[0])
        else:
            return None
        path = Path(target)
        return path if any(path.is_relative_to(self.root / part) for part in self.parts) else None

    def _changes(self, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
        how = given[1] if len(given) > 1 else named.get("mode", "r")
        return bool(how & CHANGING) if isinstance(how, int) else any(sign in how for sign in "wax+")

    def _before(self, call: str) -> None:
        """A call is about to be made; perhaps it fails."""
        self.calls.append(call)
        self.cut(f"before {call}")
        number, error = self.fail
        if len(self.calls) == number:
            self.failed = True
            raise OSError(error, os.strerror(error))

    def refuse(self, number: int, error: int) -> None:
        """From now on, let the call of this number fail."""
        with self._lock:
            self.calls.clear()
            self.fail, self.failed = (number, error), False

    def store(self, call: str) -> None:
        """The database is about to write; a refusal is told as it tells it."""
        with self._lock:
            try:
                self._before(call)
            except OSError as error:
                raise OperationalError(call, {}, sqlite3.OperationalError(str(error))) from None

    def _bury(self, path: Path) -> None:
        if path.is_file():
            os.link(path, self.grave / str(next(self._numbers)))

    def _sync_file(self, path: Path) -> None:
        if path.exists():
            self._synced[path.stat().st_ino] = path.read_bytes()

    def _sync_folder(self, path: Path) -> None:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(path)}
        self._names[str(path)] = {name: facts.st_ino for name, facts in found.items()}
        self._kinds |= {facts.st_ino: stat.S_ISDIR(facts.st_mode) for facts in found.values()}

    def cut(self, after: str) -> None:
        """Note what a power cut would leave now, unless it was the same before."""
        if not self.hows:
            return
        with sqlite3.connect(self.root / DATABASE) as live, sqlite3.connect(":memory:") as copy:
            live.backup(copy)
            database = copy.serialize()
        for how in self.hows:
            files: dict[str, bytes | None] = {}
            for part in self.parts:
                self._leave(self.root / part, files, how)
            told = tuple(self.told)
            mark = hashlib.sha256(repr((sorted(files.items()), hashlib.sha256(database).hexdigest(), told)).encode()).hexdigest()
            self.remains.setdefault(mark, Remains(how, after, files, database, told))
            self.trail.append((after, mark))

    def _leave(self, folder: Path, files: dict[str, bytes | None], how: Cut) -> None:
        """What a cut leaves of a folder."""
        {Cut.NOTHING: self._durable, Cut.ANYHOW: self._anyhow}.get(how, self._present)(folder, files, how)

    def _anyhow(self, folder: Path, files: dict[str, bytes | None], how: Cut) -> None:
        """Of names and contents that were not synced, some of this time and some of before, each for itself."""
        files[str(folder.relative_to(self.root))] = None
        before = self._names.get(str(folder), {})
        now = {entry.name: entry.inode() for entry in os.scandir(folder)} if folder.is_dir() else {}
        for name in sorted(before | now):
            number = self.chance.choice((before.get(name), now.get(name)))
            path = folder / name
            if number is None:
                continue
            if path.is_dir():
                self._anyhow(path, files, how)
            else:
                synced = self._synced.get(number, b"")
                content = path.read_bytes() if now.get(name) == number else synced
                files[str(path.relative_to(self.root))] = self._scattered(synced, content)

    def _scattered(self, synced: bytes, content: bytes) -> bytes:
        """A file that was being written: some of its sectors are there, in no order, and perhaps not its end."""
        if synced == content or self.chance.random() < 0.25:
            return content
        kept = bytearray(synced.ljust(len(content), b"\0"))
        for start in range(0, len(content), SECTOR):
            if self.chance.random() < 0.5:
                kept[start : start + SECTOR] = content[start : start + SECTOR]
        return bytes(kept[: self.chance.choice((len(content), self.chance.randint(0, len(content))))])

    def _durable(self, folder: Path, files: dict[str, bytes | None], how: Cut) -> None:
        """What is certain to be there."""
        files[str(folder.relative_to(self.root))] = None
        for name, number in self._names.get(str(folder), {}).items():
            if self._kinds[number]:
                self._durable(folder / name, files, how)
            else:
                files[str((folder / name).relative_to(self.root))] = self._synced.get(number, b"")

    def _present(self, folder: Path, files: dict[str, bytes | None], how: Cut) -> None:
        """Everything that is there, with files that were not synced whole or torn in the middle."""
        files[str(folder.relative_to(self.root))] = None
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir():
                self._present(path, files, how)
                continue
            content = path.read_bytes()
            if how is Cut.TORN and self._synced.get(path.stat().st_ino) != content:
                content = content[: len(content) // 2]
            files[str(path.relative_to(self.root))] = content


@contextmanager
def refusing(platter: Platter) -> Iterator[None]:
    """Let the database's writes be refused as the files' are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("create_run", "append_all", "checkpoint", "finish"):
            patch.setattr(Store, name, _stored(platter, getattr(Store, name)))
        yield


def _stored(platter: Platter, real: Callable[..., Any]) -> Callable[..., Any]:
    def stored(*given: Any, **named: Any) -> Any:
        platter.store(f"database {real.__name__}")
        return real(*given, **named)

    return stored
