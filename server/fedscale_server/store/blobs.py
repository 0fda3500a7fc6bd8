"""Blobs: a folder of files, each named by the SHA-256 of what it holds.

A blob is complete from the moment its name exists, and never changes. What is still being written lies in ``staging/``.
Where several servers share their blobs, the folder is what this one has seen of them: a blob is on the shelf before anybody
hears of it, and what is not here is fetched from there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

from fedscale import files
from fedscale.errors import NotFound, ProtocolError
from fedscale_server.store.depot import Shelf

PROCESS = secrets.token_hex(8)  # staging files of any other process were left by one that died


class Blobs:
    """The blobs in one folder, which is made when missing.

    Args:
        folder: its own folder; one process writes to it at a time, with any number of threads.
        shelf: where other servers find the same blobs; ``None`` where there are no others.
    """

    def __init__(self, folder: Path, shelf: Shelf | None = None) -> None:
        self.folder, self._shelf = folder, shelf
        self._staging = folder / "staging"
        if not self._staging.is_dir():
            files.private_folder(folder)
            files.private_folder(self._staging)

    def put(self, data: bytes | memoryview) -> str:
        """Store ``data`` durably; returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        files.write(self._named(digest), data, self.staging())
        if self._shelf:
            self._shelf.put(digest, self._named(digest))
        return digest

    def adopt(self, path: Path, digest: str) -> None:
        """Take in a file from ``staging``, durably. The digest is believed: whoever wrote the file has computed it.

        Raises:
            ProtocolError: the digest is malformed.
        """
        target = self._named(digest)
        path.chmod(0o600)
        files.sync(path)
        if self._shelf:
            self._shelf.put(digest, path)
        files.move(path, target)

    def names(self) -> list[str]:
        """The digests of all blobs, in order."""
        here = {path.name for path in self.folder.iterdir() if _is_digest(path.name)}
        return sorted(here | self._shelf.names() if self._shelf else here)

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return _is_digest(digest) and self._named(digest).is_file()

    def find(self, digest: str) -> bool:
        """Whether the blob is here, fetched from the shelf if need be."""
        return self.has(digest) or (_is_digest(digest) and self.fetch(digest))

    def share(self, digest: str) -> bool:
        """Whether the blob is here; if so, other servers can fetch it from now on."""
        here = self.has(digest)
        if here and self._shelf and not self._shelf.has(digest):
            self._shelf.put(digest, self._named(digest))
        return here

    def path(self, digest: str) -> Path:
        """The blob's file, to be read only.

        Raises:
            NotFound: no such blob.
            ProtocolError: the digest is malformed.
        """
        path = self._named(digest)
        if not self.find(digest):
            raise NotFound("no such blob", where=digest[:12])
        return path

    def fetch(self, digest: str) -> bool:
        """Whether the blob is on the shelf; it is here then, whole and durable, in the place of what had its name.

        Raises:
            NotFound: what is on the shelf is damaged.
            OSError: disk or depot refuse.
        """
        if self._shelf is None:
            return False
        draft = self.staging()
        try:
            if not self._shelf.fetch(digest, draft):
                return False
            with draft.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise NotFound("a shared blob is damaged", where=digest[:12], why="its bytes have another digest", hint="restore it")
            draft.chmod(0o600)
            files.sync(draft)
            files.move(draft, self._named(digest))
        finally:
            draft.unlink(missing_ok=True)
        return True

    def read(self, digest: str) -> bytes:
        """The blob's bytes, checked.

        Raises:
            NotFound: no such blob, or its file was damaged.
            ProtocolError: the digest is malformed.
        """
        data = self.path(digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise NotFound("a blob is damaged", where=digest[:12], why="its bytes have another digest", hint="check the disk and restore it")
        return data

    def delete(self, digest: str) -> None:
        """Remove the blob, if it is here.

        Raises:
            ProtocolError: the digest is malformed.
        """
        self._named(digest).unlink(missing_ok=True)
        if self._shelf:
            self._shelf.delete(digest)

    def clear(self) -> None:
        """Remove every blob, so that not even a power cut brings one back."""
        for digest in self.names():
            self.delete(digest)
        files.sync(self.folder)

    def staging(self) -> Path:
        """A path that nobody else uses, for a file to be adopted."""
        return self._staging / f"{PROCESS}-{secrets.token_hex(8)}"

    def clean(self) -> None:
        """Remove what earlier processes left half-written."""
        for path in self._staging.iterdir():
            if not path.name.startswith(PROCESS):
                path.unlink(missing_ok=True)

    def _named(self, digest: str) -> Path:
        """Where the blob lies; nothing but a digest ever becomes part of a path."""
        if not _is_digest(digest):
            raise ProtocolError("a blob is named by 64 hexadecimal digits")
        return self.folder / digest


def _is_digest(text: str) -> bool:
    """Whether it is a SHA-256 as this project writes it."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None
