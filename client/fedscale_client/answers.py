"""Answers on their way to the server. They outlive the node: a restart must not cost what may have been hours of training.

Each lies in a file of its own, beside it what it answers; one without that was never finished. Space is bounded: the oldest
that nobody is delivering goes first.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedscale import files
from fedscale.wire.convert import Key, key_text
from fedscale_client.connection import Assignment

MOST_IDLE = 16
FACTS = (("digest", str), ("size", int), ("schema", str))


@dataclass(frozen=True, slots=True)
class Answer:
    """A task's answer on its way to the server: words, or for a first model its bytes and schema."""

    path: Path
    digest: str
    size: int
    schema: str = ""

    def forget(self) -> None:
        """The server has it, or does not want it."""
        drop(self.path)


class Answers:
    """The folder of answers.

    Args:
        folder: made if need be.
        most: most bytes of answers that nobody is delivering.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = files.private_folder(folder), most
        self._idle: set[Path] = set()
        for path in list(self._folder.iterdir()):
            if not path.suffix and _facts(path).exists():
                self._idle.add(path)
            elif path.suffix != ".json" or not path.with_suffix("").exists():
                path.unlink()
        self._trim()

    def place(self, key: Key) -> Path:
        """Where the answer to a task goes; what lies idle of the same run is not asked for any more."""
        path = self._folder / f"{_short(key[0])}-{_short(key_text(key))}"
        for other in self._idle.copy():
            if other != path and other.name.startswith(f"{_short(key[0])}-"):
                self._idle.discard(other)
                drop(other)
        self._idle.discard(path)
        return path

    def finish(self, assignment: Assignment, answer: Answer) -> None:
        """Write down what an answer answers: from now on it is found again."""
        facts = {"task": _task(assignment), **{name: getattr(answer, name) for name, _ in FACTS}}
        descriptor = os.open(answer.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        files.write(_facts(answer.path), json.dumps(facts).encode())

    def found(self, assignment: Assignment, path: Path) -> Answer | None:
        """The answer to exactly this task from an earlier life, or from before the server lost it.

        Raises:
            OSError: the disk refuses. That is not to be taken for an answer that there never was: making another one would be paid for again.
        """
        try:
            facts = json.loads(_facts(path).read_bytes())
            size = path.stat().st_size
        except (FileNotFoundError, ValueError):
            return None
        whole = isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in FACTS)
        if not whole or facts.get("task") != _task(assignment) or facts["size"] != size:
            return None
        return Answer(path, facts["digest"], size, facts["schema"])

    def keep(self, answer: Answer) -> None:
        """The server has it and may ask for it again."""
        self._idle.add(answer.path)
        self._trim()

    def settle(self, answer: Answer) -> None:
        """Nobody delivers it any more: forget it, unless it is to be kept."""
        if answer.path not in self._idle:
            answer.forget()

    def _trim(self) -> None:
        """Drop the oldest idle answers beyond the bounds."""
        total = 0
        for number, path in enumerate(sorted(self._idle, key=_age, reverse=True)):
            total += path.stat().st_size if path.exists() else 0
            if number >= MOST_IDLE or total > self._most:
                self._idle.discard(path)
                drop(path)


def drop(path: Path) -> None:
    """Remove an answer and what it answers; where the disk refuses, it lies idle from the next start on."""
    with suppress(OSError):
        _facts(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _facts(path: Path) -> Path:
    """The file beside an answer."""
    return path.with_suffix(".json")


def _short(text: str) -> str:
    """A name for a file out of anything."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _task(assignment: Assignment) -> str:
    """Everything that an answer depends on, in one digest."""
    task = assignment.task
    parts = [key_text(assignment.key), assignment.plan_toml, assignment.bundle, task.model, assignment.terms, task.node, assignment.envelope]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _age(path: Path) -> float:
    """When an answer was written."""
    return path.stat().st_mtime if path.exists() else 0.0
