"""Depots: where several servers keep the same blobs, a folder that all of them see or an object store.

A server has each blob in its own home as well; the depot is what another one goes on with. There a blob lies as
``COLLECTION/DIGEST/EPOCH``, the epoch of whoever stored it, and nobody removes what a later epoch has stored: a server that
does not know yet that another one leads can do no harm to its blobs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from fedscale import files
from fedscale.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Store

MARK = "fedscale-blobs"  # tells the shared folder from the empty one that is seen where it is not mounted
PIECE = 8 << 20
PARTS_AT_ONCE = 2
REQUEST_SECONDS, RETRY_SECONDS = 60, 30


class Depot(Protocol):
    """Files by key; a key is words that are divided by ``/``. All methods block and raise OSError when the depot refuses."""

    def begin(self) -> None:
        """Take a new depot into use, once, before anything is stored there."""

    def put(self, key: str, path: Path) -> None:
        """Store a file, durably."""

    def fetch(self, key: str, path: Path) -> None:
        """Write what is stored to a file that is not there yet."""

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with ``prefix/``, in order."""

    def delete(self, key: str) -> None:
        """Remove what is stored, if it is there."""


class FolderDepot:
    """A folder that all servers see. While it has no mark everything but ``begin`` raises OSError: it may not be mounted.

    Args:
        folder: where it lies; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = files.private_folder(folder)

    def begin(self) -> None:
        """Mark the folder."""
        files.write(self._folder / MARK, b"")

    def put(self, key: str, path: Path) -> None:
        """Store a file: copied beside its place, then renamed."""
        target = self._mounted() / key
        files.private_folder(target.parent)
        draft = target.with_name(f".{target.name}-{os.getpid()}")
        try:
            shutil.copyfile(path, draft)
            files.sync(draft)
            files.move(draft, target)
        finally:
            draft.unlink(missing_ok=True)

    def fetch(self, key: str, path: Path) -> None:
        """Write what is stored to a file."""
        shutil.copyfile(self._mounted() / key, path)

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with ``prefix/``, in order."""
        found = (path for path in (self._mounted() / prefix).rglob("*") if path.is_file() and not path.name.startswith("."))
        return sorted(str(path.relative_to(self._folder)) for path in found)

    def delete(self, key: str) -> None:
        """Remove what is stored, and the folder of its blob when it was the last copy."""
        path = self._mounted() / key
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()

    def _mounted(self) -> Path:
        """The folder, now that it is certain to be the shared one."""
        if not (self._folder / MARK).is_file():
            # No errno: as a FileNotFoundError it would be taken for a blob that is lost.
            raise OSError(f"the shared folder has no file {MARK}: it is not mounted, or new")
        return self._folder


class ObjectDepot:
    """A bucket, or a part of one, of an object store that speaks S3.

    Args:
        bucket: its name.
        prefix: what all keys begin with; may be empty.
        endpoint: URL of the store; empty for Amazon's. Credentials and region come from the environment.

    Raises:
        ConfigError: the package for object stores is missing.
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str) -> None:
        self._store = _s3(bucket, prefix, endpoint)

    def begin(self) -> None:
        """Nothing: a bucket that is not there refuses everything by itself."""

    def put(self, key: str, path: Path) -> None:
        """Store a file, in parts when it is large."""
        import obstore

        with _refusals(key):
            obstore.put(self._store, key, path, chunk_size=PIECE, max_concurrency=PARTS_AT_ONCE)

    def fetch(self, key: str, path: Path) -> None:
        """Write what is stored to a file, piece by piece, each with its own deadline."""
        import obstore

        with _refusals(key), path.open("wb") as file:
            size = obstore.head(self._store, key)["size"]
            for start in range(0, size, PIECE):
                file.write(obstore.get_range(self._store, key, start=start, end=min(start + PIECE, size)))

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with ``prefix/``, in order."""
        import obstore

        with _refusals(prefix):
            return sorted(found["path"] for page in obstore.list(self._store, prefix) for found in page)

    def delete(self, key: str) -> None:
        """Remove what is stored, if it is there."""
        import obstore

        with _refusals(key):
            obstore.delete(self._store, key)


def _s3(bucket: str, prefix: str, endpoint: str) -> S3Store:
    """The client of an object store."""
    try:
        from obstore.store import S3Store
    except ModuleNotFoundError:
        raise ConfigError("an object store needs the package obstore", hint="pip install 'fedscale-fl[s3]'") from None
    plain = endpoint.startswith("http://")
    return S3Store(
        bucket,
        prefix=prefix or None,
        config={"endpoint": endpoint} if endpoint else None,
        client_options={"timeout": f"{REQUEST_SECONDS}s", "connect_timeout": "10s", "allow_http": plain},
        retry_config={"retry_timeout": timedelta(seconds=RETRY_SECONDS)},
    )


@contextmanager
def _refusals(key: str) -> Iterator[None]:
    """What an object store raises as what a disk raises."""
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        raise OSError(f"the object store refuses {key}: {type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class Shelf:
    """One collection of blobs in a depot, as seen from one epoch.

    Args:
        depot: where it is.
        collection: what its keys begin with.
        epoch: the epoch in which blobs are stored from here.
    """

    depot: Depot
    collection: str
    epoch: int

    def put(self, digest: str, path: Path) -> None:
        """Store a blob, durably."""
        self.depot.put(f"{self.collection}/{digest}/{self.epoch}", path)

    def fetch(self, digest: str, path: Path) -> bool:
        """Write a blob to a file; ``False`` when there is none."""
        copies = self.depot.keys(f"{self.collection}/{digest}")
        if copies:
            self.depot.fetch(max(copies, key=_epoch), path)
        return bool(copies)

    def has(self, digest: str) -> bool:
        """Whether there is such a blob."""
        return bool(self.depot.keys(f"{self.collection}/{digest}"))

    def names(self) -> set[str]:
        """What all blobs are stored under: their digests, or names that whoever uses the collection gives."""
        return {key.split("/")[-2] for key in self.depot.keys(self.collection)}

    def delete(self, digest: str) -> None:
        """Remove a blob, unless it was stored in a later epoch too."""
        self._drop(f"{self.collection}/{digest}")

    def clear(self) -> None:
        """Remove everything but what was stored in a later epoch."""
        self._drop(self.collection)

    def _drop(self, prefix: str) -> None:
        for key in self.depot.keys(prefix):
            if _epoch(key) <= self.epoch:
                self.depot.delete(key)


def _epoch(key: str) -> int:
    """The epoch in which what lies under a key was stored."""
    return int(key.rpartition("/")[2])


def depot_of(place: str, endpoint: str = "") -> Depot | None:
    """The depot that a setting names: ``s3://BUCKET/PREFIX`` or a folder; ``None`` for an empty one.

    Raises:
        ConfigError: neither of both, or the package for object stores is missing.
    """
    if not place:
        return None
    url = urlsplit(place)
    if url.scheme == "s3" and url.netloc:
        return ObjectDepot(url.netloc, url.path.strip("/"), endpoint)
    if url.scheme or not Path(place).is_absolute():
        hint = "write s3://BUCKET/PREFIX or the whole path of a folder"
        raise ConfigError("'blobs' is neither an object store nor a folder", where=place, hint=hint)
    try:
        return FolderDepot(Path(place))
    except OSError as error:
        raise ConfigError("the folder for blobs cannot be used", where=place, why=error.strerror or type(error).__name__) from None
