"""The table of the ledger's database; docs/data-model.md says what each column means."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import MetaData, Text
from sqlmodel import Field, SQLModel


class Table(SQLModel):
    """Base of the ledger's table: metadata of its own, which tables of other packages do not join."""

    metadata: ClassVar[MetaData] = MetaData()


class Entry(Table, table=True):
    """One line of the ledger; lines are only ever added."""

    seq: int = Field(primary_key=True)
    kind: str
    reservation: int
    facts: str = Field(sa_type=Text)
    at: str
    previous: str
    digest: str
    signature: str


# Against mistakes, not against an owner of the file: what the chain is for.
RULES = tuple(
    f"CREATE TRIGGER IF NOT EXISTS no_{change.lower()} BEFORE {change} ON entry BEGIN SELECT RAISE(ABORT, 'the ledger is only ever added to'); END"
    for change in ("UPDATE", "DELETE")
)
