"""The ledger of a site: ``reserve`` before a task is begun, ``release`` before its answer leaves, ``commit`` when it has arrived.

Each step is durable when it returns, so a crash at any moment leaves the budget spent. Several processes may use one
ledger: SQLite lets one write at a time, and each decides on what all of them have written.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import Lock
from urllib.parse import quote

from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session, col, select

from fedscale import files
from fedscale.errors import ConfigError
from fedscale.privacy.events import Spend
from fedscale_client.home import NodeHome, open_private
from fedscale_client.keys import identity_key
from fedscale_client.ledger.admission import Change, admitted
from fedscale_client.ledger.chain import Signer, flaw, sealed
from fedscale_client.ledger.claims import Cap, Claim, Parcel
from fedscale_client.ledger.head import LOOK, Head, HeadFile
from fedscale_client.ledger.lines import Kind
from fedscale_client.ledger.state import Hold, Item, State, counting, holds
from fedscale_client.ledger.tables import RULES, Entry, Table

BUSY_SECONDS = 120
PRAGMAS = (f"busy_timeout={BUSY_SECONDS * 1000}", "journal_mode=WAL", "synchronous=FULL")


class Ledger:
    """The ledger in a node's home; make one with ``Ledger.open``.

    Args:
        path: the database.
        signer: the site's key.
        head: where its end is remembered.
        now: the time, for the entries.
    """

    def __init__(self, path: Path, signer: Signer, head: HeadFile, now: Callable[[], datetime]) -> None:
        self._path, self._signer, self._head, self._now = path, signer, head, now
        self._engine, self._lock = _engine(path), Lock()
        self._state = State((0, signer.origin))

    @classmethod
    def open(cls, home: NodeHome, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Ledger:
        """The ledger of a home, made if it never had one.

        Raises:
            ConfigError: its key or database cannot be read.
        """
        folder = files.private_folder(home.ledger)
        with open_private(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            signer = Signer(identity_key(home))
            ledger = cls(folder / "ledger.db", signer, HeadFile(home.ledger_head, signer), now)
            ledger._create()
        return ledger

    # ------------------------------------------------------------------------------------------------------ three steps

    def reserve(self, claim: Claim, cap: Cap | None, kept: str = "", run: tuple[Spend, ...] = ()) -> int:
        """Set aside what a task will cost; the number of the reservation.

        Args:
            claim: what it will cost.
            cap: what must not be passed.
            kept: digest of an answer that is there already; where it has left for this task before, it costs nothing now and passes no cap.
            run: what the run costs from this task to its end, which must fit as well, beside the room that others keep, unless it has begun.

        Raises:
            PolicyRefusal: the cap would be passed.
            ConfigError: the ledger does not verify.
        """
        return self._add(lambda state: admitted(state, claim, None if kept and state.sent(claim.key, kept) else cap, run, self._now())).seq

    def consider(self, claim: Claim, cap: Cap | None, run: tuple[Spend, ...] = ()) -> None:
        """Raise what ``reserve`` would raise by now, and set nothing aside; a task that counts already is let in again."""

        def decide(state: State) -> None:
            if all(item.claim.key != claim.key for item in counting(state.items.values())):
                admitted(state, claim, cap, run, self._now())

        self._add(decide)

    def release(self, reservation: int, parcel: Parcel) -> int:
        """Note that an answer leaves now; the reservation it counts under.

        Bytes that have left before for the same task tell nothing new: they count once, under the earlier reservation.

        Raises:
            ConfigError: the ledger does not verify.
        """
        counts = [reservation]

        def decide(state: State) -> Change:
            claim = state.items[reservation].claim
            if former := state.sent(claim.key, parcel.digest):
                counts[0] = former.seq
                return Kind.REFUND, reservation, {"reason": f"the same bytes left as entry {former.seq}"}
            return Kind.RELEASE, reservation, asdict(parcel)

        self._add(decide)
        return counts[0]

    def commit(self, reservation: int, verdict: str, reason: str = "") -> None:
        """Note what the coordinator said of an answer; of one sent twice, what it said first.

        Raises:
            ConfigError: the ledger does not verify.
        """
        facts = {"verdict": verdict, "reason": reason}
        self._add(lambda state: (Kind.COMMIT, reservation, facts) if state.items[reservation].standing == "released" else None)

    def refund(self, reservation: int, reason: str) -> None:
        """Give back what was set aside for a task of which nothing left this site and nothing will.

        Raises:
            ConfigError: the ledger does not verify, or the answer has left.
        """
        self._add(lambda _: (Kind.REFUND, reservation, {"reason": reason}))

    def free(self, run: str, reason: str) -> Hold | None:
        """Let others have the room that a run keeps; what it kept, ``None`` where that was nothing.

        Raises:
            ConfigError: the ledger does not verify.
        """
        freed: list[Hold] = []

        def decide(state: State) -> Change | None:
            freed.extend(hold for hold in holds(state.items.values(), self._now()) if hold.run == run)
            return (Kind.FREE, freed[0].item.seq, {"reason": reason}) if freed else None

        self._add(decide)
        return freed[0] if freed else None

    # ------------------------------------------------------------------------------------------------------- what it says

    def holds(self) -> tuple[Hold, ...]:
        """The room that runs keep now.

        Raises:
            ConfigError: the ledger does not verify.
        """
        return holds(self.items(), self._now())

    def items(self) -> tuple[Item, ...]:
        """All reservations with what became of them, in their order.

        Raises:
            ConfigError: the ledger does not verify.
        """
        with self._lock, self._session() as session:
            self._read(session)
            return tuple(self._state.items.values())

    def entries(self) -> tuple[Entry, ...]:
        """All entries as they are stored, unverified."""
        with self._session() as session:
            return tuple(session.exec(select(Entry).order_by(col(Entry.seq))))

    def head(self) -> Head:
        """Number and hash of the last entry.

        Raises:
            ConfigError: the ledger does not verify.
        """
        self.items()
        return Head(*self._state.last)

    @property
    def end(self) -> Head:
        """Number and hash of the last entry that this process has seen or made; nothing is read."""
        return Head(*self._state.last)

    def lacks(self, known: Head) -> str:
        """What is wrong when the ledger should have an entry that somebody else has noted; empty when it has it.

        Raises:
            ConfigError: the ledger does not verify.
        """
        with self._lock, self._session() as session:
            self._read(session)
            return self._misses(session, known)

    def verify(self, known: Head | None = None) -> str:
        """The first thing that is wrong with the ledger, empty when nothing is; all of it is read anew.

        Args:
            known: a head that was noted elsewhere and that this ledger must contain.
        """
        fresh = Ledger(self._path, self._signer, self._head, self._now)
        try:
            fresh.items()
            with fresh._session() as session:
                return "" if known is None else fresh._misses(session, known)
        except ConfigError as error:
            return error.why

    # ---------------------------------------------------------------------------------------------------------- beneath

    def _add(self, decide: Callable[[State], Change | None]) -> Head:
        """Add the entry that ``decide`` makes of the state, if any; durable here and in the head when it returns."""
        with self._lock:
            with self._session() as session:
                self._read(session)
                change = decide(self._state)
                if change is None:
                    return Head(*self._state.last)
                entry = sealed(self._signer, self._state.last, *change, at=self._now().isoformat(timespec="milliseconds"))
                if problem := self._state.objection(entry):
                    raise ConfigError("the ledger cannot take this step", where=str(self._path), why=problem)
                session.add(Entry(**asdict(entry)))
                session.commit()
            self._state.take(entry)
            head = Head(*self._state.last)
            self._head.advance(head)
            return head

    def _create(self) -> None:
        """Make the file, its table and the head; not where there was a ledger before, whatever has become of it."""
        if not self._path.exists() and not self._head.path.exists():
            self._head.begin()
        head = self._head.read()
        if head is not None and head.seq == 0:
            self._path.touch(mode=0o600)
            with self._session() as session:
                Table.metadata.create_all(connection := session.connection())
                for rule in RULES:
                    connection.exec_driver_sql(rule)
                session.commit()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """One transaction, alone.

        Raises:
            ConfigError: the database is damaged, gone, or busy for minutes.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session:
                yield session
        except DatabaseError as error:
            raise self._broken(str(error.orig)) from None

    def _read(self, session: Session) -> None:
        """Verify and take in what was added since the last time.

        Raises:
            ConfigError: the chain or its end is not as this site has made it.
        """
        last = self._state.last
        if problem := self._misses(session, Head(*last)):
            raise self._broken(problem)
        for entry in session.exec(select(Entry).where(col(Entry.seq) > last[0]).order_by(col(Entry.seq))):
            if problem := flaw(self._signer, self._state.last, entry) or self._state.take(entry):
                raise self._broken(problem)
        head = self._head.read()
        if head is None:
            raise self._broken("the head is gone or was changed")
        if head != Head(*self._state.last) and (problem := self._misses(session, head)):
            raise self._broken(problem)

    def _misses(self, session: Session, known: Head) -> str:
        """What is wrong when the ledger should have this entry; empty when it has it."""
        if known.seq == 0:
            return "" if known.digest == self._signer.origin else "the head is that of another ledger"
        entry = session.get(Entry, known.seq)
        return known.misfit(None if entry is None else entry.digest)

    def _broken(self, problem: str) -> ConfigError:
        return ConfigError("the privacy ledger of this site cannot be used", where=str(self._path), why=problem, hint=LOOK)


@lru_cache(maxsize=8)
def _engine(path: Path) -> Engine:
    """An engine whose transactions write alone and are on disk when they end; it makes no file and keeps none open."""
    engine = create_engine(f"sqlite:///file:{quote(str(path))}?mode=rw&uri=true", poolclass=NullPool)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _configure(connection: sqlite3.Connection, _: object) -> None:
    """Set up a new connection; the driver shall begin no transactions of its own."""
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()
