"""The files of one run: model blobs that nodes fetch, and the answers of the round that is open.

Answers lie under the round's key, those that are still arriving too; with the key they can be read again after a crash, and
not once the round is closed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fedscale.errors import NotFound, ProtocolError
from fedscale.learner import Phase
from fedscale.ring import WORD, Words
from fedscale.vector import Vector
from fedscale.wire.codec import digest_of
from fedscale_server import files
from fedscale_server.store.blobs import Blobs
from fedscale_server.vault import BLOCK, Vault

KEPT_MODELS = 2
PIECE = 1 << 20


class Spool:
    """A run's folder: ``blobs/`` by content, ``answers/`` and ``uploads/`` by phase, round and node.

    Args:
        folder: the run's own folder, made when missing.
        lasting: whether answers are kept; otherwise nodes are asked again after a crash.
    """

    def __init__(self, folder: Path, *, lasting: bool = True) -> None:
        self.folder, self.lasting = folder, lasting
        self.answers, self.uploads = folder / "answers", folder / "uploads"
        for each in (self.answers, self.uploads):
            if not each.is_dir():
                files.private_folder(each)
        self.blobs = Blobs(folder / "blobs")
        self.vault = Vault(folder / "round.key", lasting=lasting)
        self._models: list[str] = []

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
        files.move(staged, target)

    def words(self, path: Path, digest: str = "", *, name: str = "") -> Words:
        """An answer, read through the round's key.

        Args:
            path: its file.
            digest: SHA-256 in hex that it must have.
            name: the name it was written under, if it has another one now.

        Raises:
            NotFound: there is none, or its key is gone.
            ProtocolError: it is not the one whose digest is given.
        """
        try:
            read = self._read(path, name or path.name)
        except (OSError, NotFound) as error:
            raise NotFound("an answer is missing from the spool", where=path.name, why=type(error).__name__) from None
        if not read.size:
            raise NotFound("an answer is missing from the spool", where=path.name)
        if digest and digest_of(read.data) != digest:
            raise ProtocolError("an answer in the spool is damaged", where=path.name)
        return read.view(WORD)

    def _read(self, path: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A file's bytes in the clear, held once."""
        cipher, piece = self.vault.reading(name), memoryview(bytearray(PIECE))
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            # The cipher wants room for a block more than it writes.
            plain = np.empty(size + BLOCK, np.uint8)
            done = 0
            while done < size and (count := file.readinto(piece)):
                done += cipher.update_into(piece[:count], plain[done:].data)
        plain.flags.writeable = False
        return plain[:done]

    def clear(self) -> None:
        """Drop all answers: the round is closed and only its sum remains. First of all goes the key."""
        self.vault.destroy()
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

    def store(self, vector: Vector) -> str:
        """Make a vector durable; returns its digest."""
        return self.blobs.put(np.ascontiguousarray(vector, "<f4").view(np.uint8).data)

    def vector(self, digest: str) -> Vector:
        """A stored vector.

        Raises:
            NotFound: there is none.
            ProtocolError: its file was damaged.
        """
        vector = np.fromfile(self.blobs.path(digest), "<f4")
        if digest_of(vector.view(np.uint8).data) != digest:
            raise ProtocolError("a vector in the spool is damaged", where=digest[:12])
        return vector

    def retire(self, model: str, keep: frozenset[str]) -> None:
        """Remember the newest model and delete blobs that neither it nor a checkpoint needs."""
        self._models = [*[m for m in self._models if m != model][-(KEPT_MODELS - 1) :], model]
        needed = keep | set(self._models)
        for digest in self.blobs.names():
            if digest not in needed:
                self.blobs.delete(digest)
