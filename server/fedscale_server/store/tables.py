"""The tables of the server's database; docs/data-model.md says what each column means.

Rows leave the store detached: they are values, and changing one changes nothing in the database.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, Dialect, MetaData, Text, TypeDecorator, UniqueConstraint
from sqlmodel import Field, SQLModel

NAMES = {  # every constraint has a name, the same on each database, so that a later migration can change it
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
}


class Utc(TypeDecorator[datetime]):
    """An aware time, kept in UTC; SQLite has no time zones, so they are put on again when a row is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """To UTC; a time without a zone is a mistake of the caller."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a time zone")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """From what the driver gives."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Json(TypeDecorator[Any]):
    """JSON as text: keeps the order of keys, every bit of a float, and NaN, which PostgreSQL's own type refuses."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """One line; None is stored as NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any | None:  # noqa: ARG002 - SQLAlchemy's signature
        """What was stored."""
        return None if value is None else json.loads(value)


class Prose(TypeDecorator[str]):
    """Text that other people chose; PostgreSQL cannot store NUL, and a site's error message must not stop a run."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """With each NUL replaced."""
        return value and value.replace("\0", "\N{REPLACEMENT CHARACTER}")


class Table(SQLModel):
    """Base of all tables: their own metadata, which tables of other packages do not join."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMES)


class Project(Table, table=True):
    """A group of sites and their runs."""

    name: str = Field(primary_key=True)
    created: datetime = Field(sa_type=Utc)


class Ticket(Table, table=True):
    """A one-time invitation; the secret itself is never stored."""

    id: str = Field(primary_key=True)
    secret_hash: str
    project: str = Field(foreign_key="project.name")
    role: str
    name: str | None = None
    expires_at: datetime = Field(sa_type=Utc)
    used_at: datetime | None = Field(default=None, sa_type=Utc)
    used_by: str | None = None
    used_key: str | None = None


class Member(Table, table=True):
    """Whoever holds a certificate; the project is empty for the server's operator, who belongs to none."""

    name: str = Field(primary_key=True)
    project: str
    role: str
    serial: str
    expires_at: datetime = Field(sa_type=Utc)
    joined_at: datetime = Field(sa_type=Utc)
    last_seen: datetime | None = Field(default=None, sa_type=Utc)
    datasets: list[str] = Field(default_factory=list, sa_type=Json)
    version: str = Field(default="", sa_type=Prose)
    revoked_at: datetime | None = Field(default=None, sa_type=Utc)
    identity: str | None = None
    ledger: str | None = None


class RunRow(Table, table=True):
    """A run: what was asked for, how it stands and, once it is over, its record."""

    __tablename__ = "run"

    id: str = Field(primary_key=True)
    project: str = Field(foreign_key="project.name")
    name: str
    plan: str = Field(sa_type=Prose)
    plan_hash: str
    bundle: str
    key: str | None = Field(default=None, sa_type=Prose, unique=True)
    status: str
    reason: str = Field(default="", sa_type=Prose)
    created: datetime = Field(sa_type=Utc)
    finished: datetime | None = Field(default=None, sa_type=Utc)
    record: dict[str, Any] | None = Field(default=None, sa_type=Json)


class Journal(Table, table=True):
    """One thing that happened to a run; lines are only ever added."""

    __table_args__ = (UniqueConstraint("run", "unique_key"),)

    run: str = Field(primary_key=True, foreign_key="run.id")
    seq: int = Field(primary_key=True)
    kind: str
    payload: dict[str, Any] = Field(sa_type=Json)
    at: datetime = Field(sa_type=Utc)
    unique_key: str | None = Field(default=None, sa_type=Prose)


class Checkpoint(Table, table=True):
    """A run between two rounds, with all journal lines up to ``seq`` taken in; the vectors are blobs."""

    run: str = Field(primary_key=True, foreign_key="run.id")
    seq: int = Field(primary_key=True)
    number: int
    phase: str
    facts: dict[str, Any] = Field(sa_type=Json)
    model: str
    slots: dict[str, str] = Field(sa_type=Json)
    outcome: dict[str, Any] | None = Field(default=None, sa_type=Json)
    at: datetime = Field(sa_type=Utc)


class Account(Table, table=True):
    """Somebody who may log in to the dashboard with a password."""

    name: str = Field(primary_key=True)
    role: str
    password: str = Field(sa_type=Prose)
    created: datetime = Field(sa_type=Utc)


class Login(Table, table=True):
    """A browser that is logged in; the operator, who comes by a link, has no account."""

    token_hash: str = Field(primary_key=True)
    account: str
    role: str
    created: datetime = Field(sa_type=Utc)
    expires_at: datetime = Field(sa_type=Utc)


class Lease(Table, table=True):
    """Who may write to this database: each holder has an epoch of its own, greater than all before."""

    name: str = Field(primary_key=True)
    holder: str = Field(sa_type=Prose)
    token: str
    epoch: int
    lease_until: datetime = Field(sa_type=Utc)


class Replica(Table, table=True):
    """One of several servers on this database, and where members and bearers of tickets reach it."""

    token: str = Field(primary_key=True)
    address: str = Field(sa_type=Prose)
    enrolment: str = Field(sa_type=Prose)
    seen_at: datetime = Field(sa_type=Utc)
