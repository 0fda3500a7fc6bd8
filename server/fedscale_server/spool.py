"""The files of one run: model blobs that nodes fetch, and the answers of the round that is open.

Answers lie under the round's key, those that are still arriving too; with the key they can be read again after a crash, and
not once the round is closed. Neither answers nor models are held in memory: answers are read in pieces, models are mapped.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from enum import Enum
from pathlib import Path

import numpy as np

from fedscale import files
from fedscale.errors import NotFound, ProtocolError
from fedscale.learner import Phase
from fedscale.ring import WORD, Pieces, Words
from fedscale.vector import PIECE, Vector, pieces
from fedscale_server.store.blobs import Blobs
from fedscale_server.store.depot import Shelf
from fedscale_server.vault import BLOCK, KEY, Vault

KEPT_MODELS = 2


class Keeping(Enum):
    """Where the answers of open rounds are kept."""

    HERE = "in this server's home"
    COMMON = "where other servers find them if they lie under masks, and else nowhere: those would outlive their round on a machine that is down"
    NOWHERE = "at the nodes, which are asked again after a crash"


class Sealed:
    """The words of an answer under the round's key, in pieces, for as long as there is the key; whatever becomes of the file's name.

    Args:
        path: the file.
        vault: the key.
        name: the name it was written under.

    Raises:
        OSError: there is none.
    """

    dtype = WORD

    def __init__(self, path: Path, vault: Vault, name: str) -> None:
        self._vault, self._name = vault, name
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self.size = os.fstat(self._file).st_size // WORD.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """``(size,)``."""
        return (self.size,)

    def __getitem__(self, part: slice, /) -> Words:
        """Some words in the clear, not to be written to.

        Raises:
            NotFound: the key is gone, or the file shrank.
        """
        start, stop, _ = part.indices(self.size)
        skipped, count = WORD.itemsize * start % BLOCK, WORD.itemsize * max(stop - start, 0)
        hidden = self._bytes(WORD.itemsize * start - skipped, skipped + count)
        # The cipher wants room for a block more than it writes.
        plain = np.empty(len(hidden) + BLOCK, np.uint8)
        self._vault.reading(self._name, WORD.itemsize * start // BLOCK).update_into(hidden, plain.data)
        plain.flags.writeable = False
        return plain[skipped : skipped + count].view(WORD)

    def _bytes(self, begin: int, count: int) -> memoryview:
        """Part of the file as it lies there; a single call reads less than 2 GiB on Linux, however much is asked for."""
        found, read = np.empty(count, np.uint8).data, 0
        while read < count:
            got = os.preadv(self._file, [found[read:]], begin + read)
            if not got:
                raise NotFound("an answer in the spool is cut off", where=self._name)
            read += got
        return found


class Spool:
    """A run's folder: ``blobs/`` by content, ``answers/`` and ``uploads/`` by phase, round and node.

    Args:
        folder: the run's own folder, made when missing.
        lasting: whether answers are kept; otherwise nodes are asked again after a crash.
        shelf: where other servers find the models.
        common: where another server finds the answers of the open round and their key; ``None`` where they are nobody else's business.
    """

    def __init__(self, folder: Path, *, lasting: bool = True, shelf: Shelf | None = None, common: Shelf | None = None) -> None:
        self.folder, self.lasting, self._common = folder, lasting, common
        self.answers, self.uploads = folder / "answers", folder / "uploads"
        for each in (self.answers, self.uploads):
            if not each.is_dir():
                files.private_folder(each)
        self.blobs = Blobs(folder / "blobs", shelf)
        self.vault = Vault(folder / KEY, lasting=lasting, shelf=common)
        self._models: list[str] = []

    def inherit(self) -> None:
        """Begin with the answers and the key that are on the shelf, whoever put them there; what is here may be of a round long past.

        Raises:
            OSError: disk or depot refuse.
        """
        if self._common is None:
            return
        for path in (self.folder / KEY, *self.answers.iterdir(), *self.uploads.iterdir()):
            path.unlink(missing_ok=True)
        for name in self._common.names():
            self._common.fetch(name, (self.folder if name == KEY else self.answers) / name)
        self.vault = Vault(self.folder / KEY, lasting=self.lasting, shelf=self._common)

    def answer(self, phase: str, number: int, node: str, digest: str) -> Path:
        """Where a node's answer of a round lies; the digest keeps a second, different one from taking its place."""
        return self.answers / f"{phase}-{number}-{node}-{digest[:16]}"

    def upload(self, answer: Path) -> Path:
        """Where an answer lies while it arrives; another one that the same node has begun is given up."""
        path = self.uploads / answer.name
        if not path.exists():
            for other in self.uploads.glob(f"{path.name.rpartition('-')[0]}-{'?' * 16}"):
                other.unlink(missing_ok=True)
        return path

    def keep(self, staged: Path, target: Path) -> None:
        """Make a staged, complete answer durable under its name; where none are kept, only the name says that it was here."""
        if not self.lasting:
            target.touch(mode=0o600)
            staged.unlink()
            return
        staged.chmod(0o600)
        files.sync(staged)
        if self._common:
            self._common.put(target.name, staged)
        files.move(staged, target)

    def words(self, path: Path, digest: str = "", *, name: str = "") -> Sealed:
        """An answer, to be read through the round's key.

        Args:
            path: its file.
            digest: SHA-256 in hex that it must have.
            name: the name it was written under, if it has another one now.

        Raises:
            NotFound: there is none, or its key is gone.
            ProtocolError: it is not the one whose digest is given.
            OSError: it cannot be opened at the moment, which is no loss.
        """
        try:
            sealed = Sealed(path, self.vault, name or path.name)
            whole = not digest or _digest(sealed) == digest
        except (OSError, NotFound) as error:
            if isinstance(error, OSError) and error.errno in files.LACKING:
                raise
            raise NotFound("an answer is missing from the spool", where=path.name, why=type(error).__name__) from None
        if not sealed.size:
            raise NotFound("an answer is missing from the spool", where=path.name)
        if not whole:
            raise ProtocolError("an answer in the spool is damaged", where=path.name)
        return sealed

    def clear(self) -> None:
        """Drop all answers: the round is closed and only its sum remains. First of all goes the key."""
        self.vault.destroy()
        if self._common:
            self._common.clear()
        for folder in (self.answers, self.uploads):
            for path in folder.iterdir():
                path.unlink(missing_ok=True)

    def resume(self, phase: str, number: int) -> None:
        """After a restart, drop what is not of the step that is under way or cannot be read any more."""
        found = [*self.answers.iterdir(), *self.uploads.iterdir()]
        ours = [path for path in found if path.name.startswith(f"{phase}-{number}-")]
        if not ours or not (self.vault.open or phase == Phase.INIT):
            self.clear()
        for path in set(found) - set(ours):
            path.unlink(missing_ok=True)

    def store(self, vector: Vector, digest: str = "") -> str:
        """Make a vector durable, unless it is stored already; returns its digest, which whoever knows it may give."""
        digest = digest or _digest(vector)
        if self.blobs.share(digest):
            return digest
        staged = self.blobs.staging()
        try:
            with staged.open("wb") as file:
                for part in pieces(vector):
                    file.write(vector[part].astype("<f4", copy=False).data)
            self.blobs.adopt(staged, digest)
        finally:
            staged.unlink(missing_ok=True)
        return digest

    def kept(self, digest: str) -> Vector:
        """A vector that this process has stored or checked before, mapped from its file."""
        return mapped(self.blobs.path(digest))

    def vector(self, digest: str) -> Vector:
        """A stored vector, mapped from its file and checked; from the shelf if the file was damaged.

        Raises:
            NotFound: there is none.
            ProtocolError: its file was damaged, and the shelf has no other.
            OSError: disk or depot refuse.
        """
        vector = self._whole(digest)
        if vector is None and self.blobs.fetch(digest):
            vector = self._whole(digest)
        if vector is None:
            raise ProtocolError("a vector in the spool is damaged", where=digest[:12])
        self.blobs.share(digest)
        return vector

    def _whole(self, digest: str) -> Vector | None:
        """A stored vector, ``None`` if its file was damaged."""
        try:
            vector = self.kept(digest)
        except ValueError:  # an empty file, or words cut off in the middle
            return None
        return vector if _digest(vector) == digest else None

    def retire(self, model: str, keep: frozenset[str]) -> None:
        """Remember the newest model and delete blobs that neither it nor a checkpoint needs."""
        self._models = [*[m for m in self._models if m != model][-(KEPT_MODELS - 1) :], model]
        needed = keep | set(self._models)
        for digest in self.blobs.names():
            if digest not in needed:
                self.blobs.delete(digest)


def mapped(path: Path) -> Vector:
    """A file of float32, little-endian, as a vector that takes no memory but while it is read; not to be written to."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "<f4")


def _digest(content: Pieces | Vector) -> str:
    """SHA-256 of words or of a vector, piece by piece."""
    digest = hashlib.sha256()
    parts = pieces(content) if isinstance(content, np.ndarray) else (slice(start, start + PIECE) for start in range(0, content.size, PIECE))
    for part in parts:
        digest.update(content[part].data)
    return digest.hexdigest()
