"""What a node keeps on disk between tasks: models and bundles by content.

Everything here can be fetched or computed again. Space is bounded in bytes and in number; the least recently used goes
first, never something that is held by a task.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedscale import bundle, files
from fedscale.errors import ProtocolError

MOST_ENTRIES = 64
BLOCK = 1 << 20


class Part:
    """A blob that is arriving, resumed where an earlier attempt ended.

    Args:
        path: where its bytes go; what is there already is taken as its beginning.
        digest: SHA-256 in hex of the whole.
        most: most bytes it may have.
    """

    def __init__(self, path: Path, digest: str, most: int) -> None:
        self._path, self._digest, self._most = path, digest, most
        self._hash, self.size = hashlib.sha256(), 0
        self._file = path.open("a+b", buffering=0)  # a buffer that a full disk refuses could never be closed
        self._file.seek(0)
        while block := self._file.read(BLOCK):
            self._hash.update(block)
            self.size += len(block)

    def take(self, frame: bytes | memoryview) -> None:
        """Write one frame.

        Raises:
            ProtocolError: more bytes than such a blob may have.
            OSError: the disk refuses; what has arrived is given up, to free its space.
        """
        self.size += len(frame)
        if self.size > self._most:
            self._drop()
            raise ProtocolError("a transfer is longer than it may be", where=self._digest[:12], why=f"the limit is {self._most} bytes")
        try:
            view = memoryview(frame)
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._drop()
            raise
        self._hash.update(frame)

    def done(self, target: Path) -> None:
        """Keep it as ``target``.

        Raises:
            ProtocolError: another content than asked for; what has arrived is given up.
        """
        if self._hash.hexdigest() != self._digest:
            self._drop()
            raise ProtocolError("a transfer does not have the content it was asked for", where=self._digest[:12], why="its SHA-256 differs")
        os.fsync(self._file.fileno())
        self._path.replace(target)

    def close(self) -> None:
        """Stop for now; what has arrived stays."""
        self._file.close()

    def _drop(self) -> None:
        self._path.unlink(missing_ok=True)


class Cache:
    """The folder of models and bundles.

    Args:
        folder: made if need be.
        most: most bytes kept, apart from what running tasks hold.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._blobs, self._bundles = files.private_folder(folder / "blobs"), files.private_folder(folder / "bundles")
        self._most, self._held, self._lock = most, Counter[str](), threading.Lock()

    @contextmanager
    def hold(self, *digests: str) -> Iterator[None]:
        """Keep these while a task needs them."""
        self._held.update(digests)
        try:
            yield
        finally:
            self._held.subtract(digests)

    def blob(self, digest: str) -> Path | None:
        """The file of a blob, ``None`` when it must be fetched."""
        return _used(self._blobs / _name(digest))

    def bundle(self, digest: str) -> Path | None:
        """The folder of an unpacked bundle, ``None`` when it must be fetched."""
        return _used(self._bundles / _name(digest))

    def part(self, digest: str, most: int) -> Part:
        """A blob to be received."""
        return Part(self._blobs / f"{_name(digest)}.part", digest, most)

    def keep(self, part: Part, digest: str) -> Path:
        """Keep a blob that is complete; older ones may have to go.

        Raises:
            ProtocolError: another content than asked for.
        """
        part.done(self._blobs / digest)
        self.trim()
        return self._blobs / digest

    def unpack(self, digest: str) -> Path:
        """Unpack a bundle that was fetched and drop its archive.

        Raises:
            BundleError: it is not a bundle, or the disk refuses.
        """
        archive, folder = self._blobs / digest, self._bundles / digest
        data = archive.read_bytes()
        archive.unlink()
        bundle.unpack(data, folder)
        return folder

    def trim(self) -> None:
        """Remove the least recently used until both bounds hold."""
        with self._lock:
            entries = [path for folder in (self._blobs, self._bundles) for path in folder.iterdir() if not path.name.startswith(".")]
            total = 0
            for number, path in enumerate(sorted(entries, key=_age, reverse=True)):
                size = _size(path)
                if (total + size > self._most or number >= MOST_ENTRIES) and not self._held[path.name.removesuffix(".part")]:
                    _remove(path)
                else:
                    total += size


def _name(digest: str) -> str:
    """A digest that may be part of a path: it comes from outside.

    Raises:
        ProtocolError: anything but 64 hex digits.
    """
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ProtocolError("a blob's name is malformed", why="expected a SHA-256 in hex")
    return digest


def _used(path: Path) -> Path | None:
    """The path, marked as used just now; ``None`` when there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return None
    return path


def _age(path: Path) -> int:
    """When it was used last; a transfer that has just been given up counts as oldest."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else (path,):
        with suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total


def _remove(path: Path) -> None:
    """Remove a file or folder."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
