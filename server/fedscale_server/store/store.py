"""Store: projects, tickets, members and runs with their journals and checkpoints, in SQLite or PostgreSQL.

Every method blocks, may be called from any thread, and is one transaction that is durable when it returns. Rows come
back detached. One process writes to a database at a time, which the lease decides and every transaction that writes checks
again; its writers take turns under a lock.
"""

from __future__ import annotations

import copy
import difflib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Engine, String, Text, bindparam, delete, func, text, type_coerce, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from fedscale.errors import Conflict, FedscaleError, NotFound
from fedscale.identity import Role
from fedscale_server.store import admission, database, leases
from fedscale_server.store.admission import Arrival, Bearer
from fedscale_server.store.tables import Account, Checkpoint, Journal, Json, Login, Member, Project, Prose, RunRow, Ticket, Utc

# Told last in a transaction, once all else has gone well: what it raises undoes all of it.
Note: TypeAlias = Callable[[], object]
RUNNING, SPOKEN = "running", "spoke"
SHORTEST_PREFIX = 4
RECORD: Any = RunRow.record
NO_RECORD = defer(RECORD)
LISTS = {"run": "see: fedscale run list", "project": "see: fedscale project list", "member": "see: fedscale project nodes"}

# The hottest statement: sequence number, uniqueness and line in one, with no way to come between.
APPEND = text(
    """
    INSERT INTO journal (run, seq, kind, payload, at, unique_key)
    SELECT :run, COALESCE(MAX(seq), 0) + 1, :kind, :payload, :at, :unique_key FROM journal WHERE run = :run
    ON CONFLICT (run, unique_key) DO NOTHING RETURNING seq
    """
).bindparams(
    bindparam("run", type_=String),
    bindparam("kind", type_=String),
    bindparam("payload", type_=Json),
    bindparam("at", type_=Utc),
    bindparam("unique_key", type_=Prose),
)


class Store:
    """The server's database; ``Store.open`` makes one.

    Its methods that write raise ``PermissionError``, and write nothing, while the lease is not at the epoch that ``fence`` was told.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**database.WRITE)
        self._turn = threading.Lock()
        self._epoch: int | None = None
        self.leases = leases.Leases(engine)

    @classmethod
    def open(cls, url: str) -> Store:
        """Open a database, making or upgrading it as needed.

        Raises:
            ConfigError: the URL cannot be used, or the database is of a later release.
            Unreachable: the database does not answer.
        """
        return cls(database.connect(url))

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @property
    def epoch(self) -> int:
        """The epoch in which this process writes; 0 for none."""
        return self._epoch or leases.STANDBY

    @property
    def stands_by(self) -> bool:
        """Whether this process may not write for now."""
        return self._epoch == leases.STANDBY

    def fence(self, epoch: int) -> None:
        """Write from now on only in this epoch; before the first call, whoever opened the store has the database to itself."""
        self._epoch = epoch

    def of_term(self) -> Store:
        """The same database for the epoch of now alone: whoever holds it writes nothing once that has ended, even if another one has begun."""
        return copy.copy(self)

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """A transaction that writes; it is durable once the block ends."""
        with self._turn, Session(self._writer, expire_on_commit=False) as session, session.begin():
            self._check(session.connection())
            yield session

    def _check(self, connection: Connection) -> None:
        """The first statement of every transaction that writes.

        Raises:
            PermissionError: this process does not lead any more.
        """
        if self._epoch is not None:
            leases.check(connection, self._epoch)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    # -------------------------------------------------------------------------------------------------------- projects

    def create_project(self, name: str, now: datetime, note: Note = lambda: None) -> None:
        """Begin a project.

        Raises:
            Conflict: there is one of that name.
        """
        with self._write() as session:
            if session.get(Project, name) is not None:
                raise Conflict(f"project '{name}' exists already")
            session.add(Project(name=name, created=now))
            session.flush()
            note()

    def projects(self) -> list[tuple[str, int, int]]:
        """Each project with the number of its nodes that are not revoked and of its runs, by name."""
        active = (col(Member.role) == Role.NODE) & col(Member.revoked_at).is_(None)
        nodes = select(func.count()).select_from(Member).where(col(Member.project) == col(Project.name), active).scalar_subquery()
        runs = select(func.count()).select_from(RunRow).where(col(RunRow.project) == col(Project.name)).scalar_subquery()
        with self._read() as session:
            return [(name, of_nodes, of_runs) for name, of_nodes, of_runs in session.exec(select(Project.name, nodes, runs).order_by(Project.name))]

    # --------------------------------------------------------------------------------------------- tickets and members

    def add_ticket(self, ticket: Ticket, note: Note = lambda: None) -> None:
        """Remember an invitation.

        Raises:
            NotFound: no such project.
        """
        with self._write() as session:
            _need_project(session, ticket.project)
            session.add(ticket)
            session.flush()
            note()

    def ticket(self, ticket_id: str, secret_hash: str) -> Ticket:
        """A ticket, used or not, for whoever knows its secret.

        Raises:
            TicketError: unknown, or another secret.
        """
        with self._read() as session:
            return admission.known_ticket(session, ticket_id, secret_hash)

    def enrol(self, name: str, project: str, role: str, serial: str, expires_at: datetime, now: datetime, *, again: bool = False) -> Member:
        """Enter a member; ``again`` lets it take the place of one of the same name, role and project.

        Raises:
            Conflict: the name is taken by somebody who is not revoked.
            NotFound: no such project; an empty one is allowed.
        """
        with self._write() as session:
            if project:
                _need_project(session, project)
            row = Member(name=name, project=project, role=role, serial=serial, expires_at=expires_at, joined_at=now)
            return admission.enrol(session, row, again=again)

    def redeem(
        self,
        bearer: Bearer,
        name: str,
        serial: str,
        expires_at: datetime,
        now: datetime,
        note: Callable[[Member], object] = lambda _: None,
    ) -> Member:
        """Use a ticket up and enter its bearer in one transaction: a crash or a taken name leaves the ticket as it was.

        Whatever ``note``, which is told of the member last, raises does so too.

        Raises:
            TicketError: unknown, another secret, used, expired, or made out for another name.
            Conflict: as ``enrol``; a ticket made out for the name lets its member join again, as does one whose reply was lost.
        """
        with self._write() as session:
            ticket, again = admission.claim(session, bearer, name, now)
            row = Member(name=name, project=ticket.project, role=ticket.role, serial=serial, expires_at=expires_at, joined_at=now)
            member = admission.enrol(session, row, again=again)
            session.flush()
            note(member)
            return member

    def member(self, name: str) -> Member | None:
        """A member, revoked ones too."""
        with self._read() as session:
            return session.get(Member, name)

    def members(self, project: str | None = None) -> list[Member]:
        """All members, or those of a project, by name; revoked ones too."""
        wanted = select(Member).order_by(Member.name)
        with self._read() as session:
            return list(session.exec(wanted if project is None else wanted.where(col(Member.project) == project)))

    def seen(self, arrivals: Sequence[Arrival], now: datetime) -> dict[str, Member]:
        """Nodes have connected and said what they offer, and by which key they are known if by one: those that are members, by name."""
        with self._write() as session:
            for each in arrivals:
                known = {"identity": each.identity} if each.identity else {}
                values = {"last_seen": now, "datasets": list(each.datasets), "version": each.version, **known}
                session.exec(update(Member).where(col(Member.name) == each.name).values(**values))
            found = session.exec(select(Member).where(col(Member.name).in_([each.name for each in arrivals])))
            return {member.name: member for member in found}

    def renewed(self, name: str, serial: str, expires_at: datetime) -> None:
        """A member has a new certificate.

        Raises:
            NotFound: no such member.
        """
        self._change_member(name, serial=serial, expires_at=expires_at)

    def revoke(self, name: str, now: datetime, note: Note = lambda: None) -> None:
        """Shut a member out; the first time counts.

        Raises:
            NotFound: no such member.
        """
        self._change_member(name, note, revoked_at=func.coalesce(Member.revoked_at, now))

    def _change_member(self, name: str, note: Note = lambda: None, **values: object) -> None:
        with self._write() as session:
            if session.exec(update(Member).where(col(Member.name) == name).values(**values)).rowcount == 0:
                raise _unknown("member", name, session.exec(select(Member.name)))
            note()

    def revoked(self) -> frozenset[str]:
        """Names of the members that are shut out."""
        with self._read() as session:
            return frozenset(session.exec(select(Member.name).where(col(Member.revoked_at).is_not(None))))

    # --------------------------------------------------------------------------------------------- accounts and logins

    def put_account(self, account: Account, note: Note = lambda: None) -> None:
        """Enter an account, or give the one of that name another role and password; whoever was logged in by it is no more."""
        with self._write() as session:
            session.exec(delete(Login).where(col(Login.account) == account.name))
            session.merge(account)
            session.flush()
            note()

    def account(self, name: str) -> Account | None:
        """An account of the dashboard."""
        with self._read() as session:
            return session.get(Account, name)

    def accounts(self) -> list[Account]:
        """All accounts, by name."""
        with self._read() as session:
            return list(session.exec(select(Account).order_by(Account.name)))

    def drop_account(self, name: str, note: Note = lambda: None) -> None:
        """Remove an account; whoever was logged in by it is no more.

        Raises:
            NotFound: no such account.
        """
        with self._write() as session:
            session.exec(delete(Login).where(col(Login.account) == name))
            if session.exec(delete(Account).where(col(Account.name) == name)).rowcount == 0:
                raise _unknown("user", name, session.exec(select(Account.name)))
            note()

    def open_login(self, login: Login) -> None:
        """Remember that a browser is logged in, and forget the logins that have expired before it."""
        with self._write() as session:
            session.exec(delete(Login).where(col(Login.expires_at) <= login.created))
            session.add(login)

    def login(self, token_hash: str, now: datetime) -> Login | None:
        """A login that has not expired."""
        with self._read() as session:
            return session.exec(select(Login).where(col(Login.token_hash) == token_hash, col(Login.expires_at) > now)).first()

    def close_login(self, token_hash: str) -> None:
        """Forget a login, if it is there."""
        with self._write() as session:
            session.exec(delete(Login).where(col(Login.token_hash) == token_hash))

    # ------------------------------------------------------------------------------------------------------------ runs

    def create_run(  # noqa: PLR0913, PLR0917 - the columns of one row
        self,
        run: str,
        project: str,
        name: str,
        plan: str,
        plan_hash: str,
        bundle: str,
        key: str,
        now: datetime,
        note: Note = lambda: None,
    ) -> RunRow:
        """Begin a run, or find the one that the same ``key`` began before, which is not noted again; an empty key is never found again.

        Raises:
            NotFound: no such project.
            Conflict: the key began another plan, bundle or project, or the id is taken.
        """
        row = RunRow(id=run, project=project, name=name, plan=plan, plan_hash=plan_hash, bundle=bundle, key=key or None, status=RUNNING, created=now)
        with self._write() as session:
            before = session.exec(select(RunRow).where(col(RunRow.key) == row.key)).first() if key else None
            if before is not None:
                if (before.project, before.plan_hash, before.bundle) != (project, plan_hash, bundle):
                    raise Conflict("the key was used for another submission", where=f"run {before.id}", hint="choose a new key")
                return before
            _need_project(session, project)
            if session.get(RunRow, run) is not None:
                raise Conflict(f"run '{run}' exists already")
            session.add(row)
            session.flush()
            note()
        return row

    def run(self, run: str, *, record: bool = True) -> RunRow:
        """A run by its id, or by the beginning of it when no other run begins so; without its record, which may be long, where that is not needed.

        Raises:
            NotFound: no such run, or several.
        """
        wanted = [] if record else [NO_RECORD]
        with self._read() as session:
            row = session.get(RunRow, run, options=wanted)
            if row is not None:
                return row
            ids = sorted(session.exec(select(RunRow.id)))
            begin_so = [known for known in ids if known.startswith(run)] if len(run) >= SHORTEST_PREFIX else []
            if len(begin_so) > 1:
                raise NotFound(f"several runs begin with '{run}'", why=", ".join(begin_so[:5]), hint="give more of the id")
            if not begin_so:
                raise _unknown("run", run, ids)
            return session.get_one(RunRow, begin_so[0], options=wanted)

    def runs(self, project: str | None = None) -> list[RunRow]:
        """All runs, or those of a project, the newest first; without their records."""
        wanted = select(RunRow).options(NO_RECORD).order_by(col(RunRow.created).desc(), col(RunRow.id))
        with self._read() as session:
            return list(session.exec(wanted if project is None else wanted.where(col(RunRow.project) == project)))

    def record(self, run: str) -> str:
        """The record of a run that is over, as JSON; empty where there is none."""
        with self._read() as session:
            return session.exec(select(type_coerce(col(RunRow.record), Text)).where(col(RunRow.id) == run)).first() or ""

    def ends(self, project: str | None = None, run: str | None = None) -> dict[str, tuple[str, int]]:
        """At which phase and round runs have ended, by id: the last one that was closed; of a led run, that of its last line.

        Args:
            project: only its runs.
            run: only this one.
        """
        last = select(func.max(Checkpoint.seq)).where(col(Checkpoint.run) == col(RunRow.id)).correlate(RunRow).scalar_subquery()
        line = select(func.max(Journal.seq)).where(col(Journal.run) == col(RunRow.id)).correlate(RunRow).scalar_subquery()
        closed = (col(Checkpoint.run) == col(RunRow.id)) & (col(Checkpoint.seq) == last)
        told = (col(Journal.run) == col(RunRow.id)) & (col(Journal.seq) == line) & col(Checkpoint.run).is_(None)
        wanted = select(RunRow.id, Checkpoint.phase, Checkpoint.number, Journal.payload).outerjoin(Checkpoint, closed).outerjoin(Journal, told)
        wanted = wanted.where(col(RunRow.finished).is_not(None))
        wanted = wanted if project is None else wanted.where(col(RunRow.project) == project)
        wanted = wanted if run is None else wanted.where(col(RunRow.id) == run)
        with self._read() as session:
            found = session.exec(wanted)
            ends = {name: (phase, number) if phase else (line["phase"], line["number"]) for name, phase, number, line in found if phase or line}
        return {name: end for name, end in ends.items() if end[1]}

    def unfinished(self) -> list[RunRow]:
        """Runs that are not over, the oldest first."""
        with self._read() as session:
            return list(session.exec(select(RunRow).where(col(RunRow.finished).is_(None)).order_by(col(RunRow.created), col(RunRow.id))))

    def set_status(self, run: str, status: str, reason: str = "") -> None:
        """Note how a run stands; a finished one stays as it ended.

        Raises:
            NotFound: no such run.
        """
        self._change_run(run, status=status, reason=reason)

    def finish(self, run: str, status: str, reason: str, record: dict[str, Any], at: datetime) -> None:
        """Note how a run ended; the first time counts, so a repetition after a crash changes nothing.

        Raises:
            NotFound: no such run.
        """
        self._change_run(run, status=status, reason=reason, record=record, finished=at)

    def _change_run(self, run: str, **values: object) -> None:
        unfinished: ColumnElement[bool] = col(RunRow.finished).is_(None)
        with self._write() as session:
            changed = session.exec(update(RunRow).where(col(RunRow.id) == run, unfinished).values(**values)).rowcount
            if changed == 0 and session.get(RunRow, run) is None:
                raise _unknown("run", run, session.exec(select(RunRow.id)))

    # ------------------------------------------------------------------------------------------ journal and checkpoints

    def append(self, run: str, kind: str, payload: dict[str, Any], at: datetime, unique: str | None = None) -> int | None:
        """Add a line to a run's journal.

        Args:
            run: its id.
            kind: what happened.
            payload: the facts, as JSON.
            at: when.
            unique: a name that only one line of the run may have.

        Returns:
            The line's number, counted from 1 without gaps, or ``None`` when ``unique`` is taken.

        Raises:
            NotFound: no such run.
        """
        return self.append_all(run, [(kind, payload, unique)], at)[0]

    def append_all(self, run: str, lines: Iterable[tuple[str, dict[str, Any], str | None]], at: datetime) -> list[int | None]:
        """Add several lines, all or none; each is what ``append`` takes as kind, payload and unique name, and gives its number.

        Raises:
            NotFound: no such run.
        """
        rows = [{"run": run, "kind": kind, "payload": payload, "at": at, "unique_key": unique} for kind, payload, unique in lines]
        try:
            with self._turn, self._writer.begin() as connection:
                self._check(connection)
                return [connection.execute(APPEND, row).scalar() for row in rows]
        except IntegrityError:
            raise NotFound(f"no run '{run}' to write a journal for") from None

    def journal(self, run: str, after: int = 0, limit: int | None = None) -> list[Journal]:
        """The lines of a run's journal whose number is greater than ``after``, at most ``limit``, in order."""
        wanted = select(Journal).where(col(Journal.run) == run, col(Journal.seq) > after).order_by(col(Journal.seq)).limit(limit)
        with self._read() as session:
            return list(session.exec(wanted))

    def lines(self, run: str, names: Iterable[str]) -> list[Journal]:
        """The lines of a run's journal with one of these unique names, in order."""
        wanted = select(Journal).where(col(Journal.run) == run, col(Journal.unique_key).in_([*names])).order_by(col(Journal.seq))
        with self._read() as session:
            return list(session.exec(wanted))

    def lines_of_ended(self, unique: str, since: datetime, most: int) -> list[Journal]:
        """The lines of this unique name of runs that have ended since a time, those of the newest runs first, at most so many."""
        ended = (col(RunRow.finished) >= since) & (col(Journal.unique_key) == unique)
        wanted = select(Journal).join(RunRow, col(RunRow.id) == col(Journal.run)).where(ended).order_by(col(RunRow.finished).desc(), col(RunRow.id))
        with self._read() as session:
            return list(session.exec(wanted.limit(most)))

    def before_last(self, run: str, kind: str, count: int) -> int:
        """The number of the line before the last ``count`` lines of a kind begin; 0 when there are not more of them."""
        wanted = select(Journal.seq).where(col(Journal.run) == run, col(Journal.kind) == kind).order_by(col(Journal.seq).desc())
        with self._read() as session:
            found = session.exec(wanted.offset(count - 1).limit(1)).first()
        return found - 1 if found else 0

    def checkpoint(  # noqa: PLR0913, PLR0917 - the columns of one row
        self,
        run: str,
        seq: int,
        number: int,
        phase: str,
        facts: dict[str, Any],
        model: str,
        slots: dict[str, str],
        outcome: dict[str, Any] | None,
        at: datetime,
        heads: Mapping[str, str] | None = None,
    ) -> None:
        """Store a run between two rounds, with the ends of ledgers that it brought; the same ``seq`` again takes the place of the first.

        What the nodes said under secure aggregation before it is never replayed: their lines stay for whoever watches, their messages go.

        Raises:
            NotFound: no such run.
        """
        row = Checkpoint(run=run, seq=seq, number=number, phase=phase, facts=facts, model=model, slots=slots, outcome=outcome, at=at)
        try:
            with self._write() as session:
                session.merge(row)
                _anchor(session, heads or {})
                since = select(func.coalesce(func.max(Checkpoint.seq), 0)).where(col(Checkpoint.run) == run, col(Checkpoint.seq) < seq)
                between = (col(Journal.seq) > since.scalar_subquery()) & (col(Journal.seq) <= seq)
                for line in session.exec(select(Journal).where(col(Journal.run) == run, between, col(Journal.kind) == SPOKEN)):
                    line.payload = {**line.payload, "event": {**line.payload["event"], "data": ""}}
        except IntegrityError:
            raise NotFound(f"no run '{run}' to write a checkpoint for") from None

    def last_checkpoint(self, run: str) -> Checkpoint | None:
        """The newest checkpoint of a run."""
        with self._read() as session:
            return session.exec(select(Checkpoint).where(col(Checkpoint.run) == run).order_by(col(Checkpoint.seq).desc()).limit(1)).first()

    def holders(self, model: str) -> list[str]:
        """The runs that have, or had, this model."""
        with self._read() as session:
            return list(session.exec(select(Checkpoint.run).where(col(Checkpoint.model) == model).distinct()))

    def outcomes(self, run: str) -> list[dict[str, Any]]:
        """The outcomes of a run's closed rounds, in order."""
        closed = select(Checkpoint.outcome).where(col(Checkpoint.run) == run, col(Checkpoint.outcome).is_not(None)).order_by(col(Checkpoint.seq))
        with self._read() as session:
            return [dict(outcome) for outcome in session.exec(closed) if outcome is not None]


def _anchor(session: Session, heads: Mapping[str, str]) -> None:
    """Note the ends of nodes' ledgers, ``NUMBER:HASH`` by name; an earlier end than the one that is known changes nothing."""
    for member in session.exec(select(Member).where(col(Member.name).in_(heads))):
        if _number(member.ledger) < _number(heads[member.name]):
            member.ledger = heads[member.name]
            session.add(member)


def _number(head: str | None) -> int:
    """The number in the end of a ledger; -1 for none."""
    return int(head.partition(":")[0]) if head else -1


def _need_project(session: Session, name: str) -> None:
    """Refuse to go on without the project."""
    if session.get(Project, name) is None:
        raise _unknown("project", name, session.exec(select(Project.name)))


def _unknown(kind: str, name: str, known: Iterable[str]) -> FedscaleError:
    """That there is no such thing, with what was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return NotFound(f"no {kind} '{name}'", hint=f"did you mean '{close[0]}'?" if close else LISTS.get(kind, ""))
