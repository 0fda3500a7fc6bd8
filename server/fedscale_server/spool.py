"""The files of one run: model blobs that nodes fetch, and the answers of the round that is open."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from fedscale.errors import NotFound, ProtocolError
from fedscale.ring import WORD, Words
from fedscale.vector import Vector
from fedscale.wire.codec import digest_of
from fedscale_server import files
from fedscale_server.store.blobs import Blobs

KEPT_MODELS = 2


class Spool:
    """A run's folder: ``blobs/`` by content and ``answers/`` by phase, round and node.

    Args:
        folder: the run's own folder, made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers = folder / "answers"
        self.answers.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.blobs = Blobs(folder / "blobs")
        self._models: list[str] = []

    def answer(self, phase: str, number: int, node: str, digest: str) -> Path:
        """Where a node's answer of a round lies; the digest keeps a second, different one from taking its place."""
        return self.answers / f"{phase}-{number}-{node}-{digest[:16]}"

    def keep(self, staged: Path, target: Path) -> None:
        """Make a staged, complete answer durable under its name."""
        staged.chmod(0o600)
        files.sync(staged)
        files.move(staged, target)

    def words(self, path: Path, digest: str = "") -> Words:
        """An answer, mapped and not copied.

        Raises:
            NotFound: there is none.
            ProtocolError: it is not the one whose digest is given.
        """
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise NotFound("an answer is missing from the spool", where=path.name, why=type(error).__name__) from None
        if digest and digest_of(memoryview(mapped)) != digest:
            raise ProtocolError("an answer in the spool is damaged", where=path.name)
        return np.frombuffer(mapped, WORD)

    def clear(self) -> None:
        """Drop all answers: the round is closed and only its sum remains."""
        for path in self.answers.iterdir():
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
