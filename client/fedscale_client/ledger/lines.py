"""A line of the ledger as a plain value, for whoever only reads: the database library is not loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Kind(StrEnum):
    """What happened: budget was set aside, an answer left, the coordinator answered, nothing will leave, or a run needs no room any more."""

    RESERVE = "reserve"
    RELEASE = "release"
    COMMIT = "commit"
    REFUND = "refund"
    FREE = "free"


class Said(Protocol):
    """What a line says, as a row of the table or as a ``Line``."""

    seq: int
    kind: str
    reservation: int
    facts: str
    at: str
    previous: str
    digest: str
    signature: str


@dataclass(slots=True)
class Line:
    """A line of the ledger; ``docs/data-model.md`` says what each part means."""

    seq: int
    kind: str
    reservation: int
    facts: str
    at: str
    previous: str
    digest: str
    signature: str
