"""Which of several servers may write: one row, taken and renewed by compare-and-set, with an epoch that only ever grows.

A lock alone is not mutual exclusion: whoever was stopped while holding it goes on as if it still had it. So each transaction
that writes looks for its own epoch, and keeps the row from changing until it ends. Time is the database's where it has a
clock of its own.
"""

from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, DateTime, Engine, bindparam, func, or_, select, text, update
from sqlmodel import Session, col

from fedscale_server.store import database
from fedscale_server.store.tables import Lease, Replica, Utc

if TYPE_CHECKING:
    from fedscale.clock import Clock

NAME = "coordinator"
STANDBY = 0  # no lease ever has this epoch
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
FOREVER = datetime(9999, 12, 31, tzinfo=UTC)  # of a server that shares its database with nobody
# Shared, so that writers do not wait for each other; a takeover waits for all of them. SQLite locks the whole file anyway.
FIRST = text(
    "INSERT INTO lease (name, holder, token, epoch, lease_until) VALUES (:name, '', '', :epoch, :ended) ON CONFLICT (name) DO NOTHING"
).bindparams(bindparam("ended", type_=Utc))
FENCE = select(col(Lease.epoch)).where(col(Lease.name) == NAME, col(Lease.epoch) == bindparam("epoch")).with_for_update(read=True)


class Leases:
    """The lease of one database, and the servers that share it. Every method blocks and is one transaction.

    Args:
        engine: the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**database.WRITE)
        self._own_clock = engine.dialect.name == "postgresql"

    def _now(self, clock: Clock) -> Any:
        """The time, as a value or as what the database replaces by it; also after it has waited for another transaction."""
        return func.clock_timestamp(type_=DateTime(timezone=True)) if self._own_clock else clock.now()

    def take(self, holder: str, token: str, clock: Clock, seconds: float, *, back: bool = False) -> int | None:
        """Become the one who writes, if the lease of whoever did has ended.

        Args:
            holder: where the server is reached.
            token: the server's own; nobody else has it.
            clock: the time, where the database has none.
            seconds: how long the lease lasts; infinite for ever.
            back: whether a lease of the same token may be taken before its end, for whoever held it is known to be dead.

        Returns:
            The new epoch, or ``None`` while somebody else holds the lease.
        """
        now = self._now(clock)
        ended: ColumnElement[bool] = col(Lease.lease_until) <= now
        free = or_(ended, col(Lease.token) == token) if back else ended
        taken = {"holder": holder, "token": token, "epoch": col(Lease.epoch) + 1, "lease_until": _until(now, seconds)}
        with Session(self._writer) as session, session.begin():
            session.connection().execute(FIRST, {"name": NAME, "epoch": STANDBY, "ended": LONG_AGO})
            changed = session.exec(update(Lease).where(col(Lease.name) == NAME, free).values(**taken)).rowcount
            return session.get_one(Lease, NAME).epoch if changed else None

    def renew(self, epoch: int, clock: Clock, seconds: float) -> bool:
        """Hold the lease for longer; ``False`` when somebody else has taken it."""
        return self._change(col(Lease.epoch) == epoch, _until(self._now(clock), seconds))

    def free(self, token: str, clock: Clock) -> bool:
        """Let the lease go before its end; ``False`` when it is somebody else's."""
        return self._change(col(Lease.token) == token, self._now(clock))

    def _change(self, mine: ColumnElement[bool], until: Any) -> bool:
        with Session(self._writer) as session, session.begin():
            return session.exec(update(Lease).where(col(Lease.name) == NAME, mine).values(lease_until=until)).rowcount > 0

    def held(self) -> Lease | None:
        """The lease as it stands; ``None`` when nobody ever led."""
        with Session(self._engine) as session:
            lease = session.get(Lease, NAME)
            return lease if lease is not None and lease.epoch > STANDBY else None

    def appear(self, token: str, address: str, enrolment: str, clock: Clock) -> None:
        """Say that a server is there and where; others then tell nodes of it."""
        now = clock.now()
        with Session(self._writer) as session, session.begin():
            session.merge(Replica(token=token, address=address, enrolment=enrolment, seen_at=now))

    def replicas(self, since: datetime) -> list[Replica]:
        """The servers that were there since then, by address."""
        with Session(self._engine) as session:
            wanted = select(Replica).where(col(Replica.seen_at) >= since).order_by(col(Replica.address))
            return list(session.scalars(wanted))


def check(connection: Connection, epoch: int) -> None:
    """Make sure that whoever writes in this transaction leads, and that nobody else begins to before it ends.

    Raises:
        PermissionError: somebody else has taken the lease; to whoever writes it is like a disk that refuses.
    """
    if connection.execute(FENCE, {"epoch": epoch}).first() is None:
        raise PermissionError(errno.EACCES, "another coordinator leads" if epoch != STANDBY else "this coordinator stands by")


def _until(now: Any, seconds: float) -> Any:
    """The end of a lease."""
    return FOREVER if seconds == float("inf") else now + timedelta(seconds=seconds)
