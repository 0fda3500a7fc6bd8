"""What people ask of a coordinator, by whichever door they come in: the gRPC calls and the dashboard serve the same functions.

Who may ask what is for the doors to decide; here everything is allowed, and everything comes back as a plain value.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import structlog

import fedscale
from fedscale import bundle
from fedscale.errors import Conflict, Unreachable
from fedscale.identity import Role, valid_name
from fedscale.plan import Plan
from fedscale.record import RunRecord
from fedscale.run import RUNNING
from fedscale.vector import Schema
from fedscale_server.answers import Detail, Invitation, Project, RunInfo, Site, Status
from fedscale_server.driver import Driver
from fedscale_server.engine import Engine
from fedscale_server.feed import End, run_event
from fedscale_server.leadership import Leadership
from fedscale_server.logbook import Entry, bare_record
from fedscale_server.registry import Registry
from fedscale_server.trail import Author, Trail
from fedscale_server.weights import safetensors_of

if TYPE_CHECKING:
    from fedscale.proto.v1 import control_pb2 as pb
    from fedscale_server.store.tables import Member, RunRow

log = structlog.get_logger()
DAY = 86_400.0
PAGE = 500


class Coordinator:
    """Projects, tickets, sites and runs.

    Args:
        engine: the runs.
        registry: tickets and members.
        federation: the federation's name.
        address: ``host:port`` of the mTLS port.
        enrolment: ``host:port`` of the enrolment port, which goes into tickets.
        leadership: which of several coordinators leads, and where they are.
        trail: remembers who did what.
    """

    def __init__(
        self, engine: Engine, registry: Registry, federation: str, address: str, enrolment: str, leadership: Leadership, trail: Trail
    ) -> None:
        self.engine, self.federation, self._leadership, self.trail = engine, federation, leadership, trail
        self._registry, self._store = registry, engine.store
        self._address, self._enrolment = address, enrolment

    async def status(self) -> Status:
        """The server at a glance: all sites, and the runs that go on."""
        rows = [driver.book.row for driver in self.engine.drivers()]
        runs = tuple(self._info(row) for row in rows)
        lease = await asyncio.to_thread(self._leadership.held)
        epoch, until = (lease.epoch, lease.lease_until.timestamp()) if lease and not self._leadership.alone else (0, 0.0)
        replicas = tuple(place.address for place in self._leadership.places)
        sites = tuple(await self.sites())
        return Status(
            fedscale.__version__, self.federation, self._address, self._enrolment, sites, runs, replicas=replicas, epoch=epoch, leads_until=until
        )

    def note(self, author: Author, action: str, target: str = "", **facts: Any) -> None:
        """Write down who does what, before it is done; durable when it returns. Blocks.

        Raises:
            Unreachable: the disk refuses, or the trail is damaged; so it must not be done.
        """
        self.trail.insist(author.who, author.door, action, target, **facts)

    async def noted(self, author: Author, action: str, target: str = "", **facts: Any) -> None:
        """As ``note``, without blocking."""
        await asyncio.to_thread(partial(self.note, author, action, target, **facts))

    async def create_project(self, name: str, by: Author) -> Project:
        """A new, empty project.

        Raises:
            ConfigError: the name is not valid.
            Conflict: there is one of that name.
        """
        note = partial(self.note, by, "project made", name)
        await asyncio.to_thread(self._store.create_project, valid_name(name), self.engine.now(), note)
        return Project(name, 0, 0)

    async def projects(self) -> list[Project]:
        """All projects with their sizes."""
        return [Project(*row) for row in await asyncio.to_thread(self._store.projects)]

    async def invite(self, project: str, name: str, role: str, ttl_seconds: float, by: Author) -> Invitation:
        """A one-time ticket; for a node and a day unless told otherwise.

        Raises:
            NotFound: no such project.
            ConfigError: the name, role or time is not valid.
        """
        ttl, role = ttl_seconds or DAY, role or Role.NODE
        note = partial(self.note, by, "invited", name, project=project, role=role)
        doors = ",".join(place.enrolment for place in self._leadership.places) or self._enrolment
        ticket = await asyncio.to_thread(self._registry.invite, project, name or None, role, ttl, doors, note)
        return Invitation(str(ticket), self.engine.now().timestamp() + ttl)

    async def sites(self, project: str = "") -> list[Site]:
        """The sites of a project, or of all, by name; those that are shut out too."""
        members = await asyncio.to_thread(self._store.members, project or None)
        return [self._site(member) for member in members if member.role == Role.NODE]

    async def revoke(self, name: str, by: Author) -> None:
        """Shut a member out and cut its stream.

        Raises:
            NotFound: no such member.
        """
        await asyncio.to_thread(self._registry.revoke, name, partial(self.note, by, "shut out", name))
        self.engine.sessions.close(name)
        log.warning("member revoked", member=name, by=by.who)

    async def submit(self, project: str, plan: str, digest: str, key: str, by: Author) -> RunInfo:
        """Start a run of the bundle with this digest; the errors are those of ``Engine.submit``."""
        note = partial(self.note, by, "run submitted", project=project, app=digest)
        return await self.run((await self.engine.submit(project, plan, digest, key, note)).id)

    async def runs(self, project: str = "") -> list[RunInfo]:
        """Runs, newest first."""
        rows = await asyncio.to_thread(self._store.runs, project or None)
        ends = await asyncio.to_thread(self._store.ends, project or None)
        return [self._info(row, ends.get(row.id)) for row in rows]

    async def run(self, run: str) -> RunInfo:
        """One run by its id, or the beginning of it.

        Raises:
            NotFound: no such run.
        """
        return await self._told(await self._row(run))

    async def detail(self, run: str) -> Detail:
        """One run with its record so far and its newest model.

        Raises:
            NotFound: no such run.
        """
        row = await self._row(run)
        checkpoint = await asyncio.to_thread(self._store.last_checkpoint, row.id)
        model, schema = (checkpoint.model, checkpoint.facts["schema"]) if checkpoint else ("", "")
        return Detail(await self._told(row), await self.record_text(row.id), model, schema)

    async def record(self, run: str) -> tuple[RunInfo, RunRecord]:
        """One run with its record so far, as a value.

        Raises:
            NotFound: no such run.
        """
        row = await self._row(run)
        record = self._open_record(row)
        if record is None:
            # A page may ask for hundreds, and meanwhile nodes want to hear of the server.
            record = await asyncio.to_thread(lambda: RunRecord.from_json(self._store.record(row.id)))
        return await self._told(row), record

    async def record_text(self, run: str) -> str:
        """The record of one run so far, as JSON; that of one that is over as it is stored.

        Raises:
            NotFound: no such run.
        """
        row = await self._row(run)
        record = self._open_record(row)
        return await asyncio.to_thread(record.to_json if record else partial(self._store.record, row.id))

    def _open_record(self, row: RunRow) -> RunRecord | None:
        """The record of a run that goes on, as far as it has come; ``None`` for one that is over."""
        driver = self.engine.driver(row.id)
        if driver is not None:
            return driver.book.record(self.engine.now())
        return bare_record(row, row.status, row.reason, self.engine.now()) if row.finished is None else None

    async def _row(self, run: str) -> RunRow:
        """A run without its record; raises what ``Store.run`` does."""
        return await asyncio.to_thread(partial(self._store.run, run, record=False))

    async def _told(self, row: RunRow) -> RunInfo:
        """A run as people see it."""
        ends = await asyncio.to_thread(partial(self._store.ends, run=row.id)) if row.finished else {}
        return self._info(row, ends.get(row.id))

    async def recent(self, run: str, phases: int) -> int:
        """The number of the line before which a run's last ``phases`` phases began; watching from there on shows them whole."""
        return await asyncio.to_thread(self._store.before_last, run, "note.opened", phases)

    async def model(self, run: str) -> tuple[RunInfo, bytes]:
        """A run's newest model as safetensors.

        Raises:
            NotFound: no such run.
            Conflict: it has no model yet.
        """
        detail = await self.detail(run)
        name, digest = detail.info.run, detail.model
        if not digest:
            raise Conflict(f"run {name} has no model yet", hint=f"follow it: fedscale run watch {name}")
        content = await asyncio.to_thread(self.engine.spool(name).blobs.read, digest)
        return detail.info, await asyncio.to_thread(safetensors_of, name, digest, Schema.from_json(detail.schema), content)

    async def keep_bundle(self, packed: bytes) -> str:
        """Store an app bundle; returns its digest.

        Raises:
            BundleError: it is not one.
        """
        await asyncio.to_thread(bundle.read, packed)
        return await asyncio.to_thread(self.engine.bundles.put, packed)

    async def watch(self, run: str, after: int) -> AsyncGenerator[pb.RunEvent, None]:
        """The journal from ``after`` on, then everything as it happens, until the run is over.

        Raises:
            NotFound: no such run.
            Unreachable: the server goes down, the run waits for disk or database, or the watcher does not keep up; it may come back with the
                last number it saw.
        """
        row = await self._row(run)
        driver = self.engine.driver(row.id)
        if driver is None:
            self.engine.check(row.id)
        live = driver.feed.watch() if driver else None
        last = after
        try:
            while page := await asyncio.to_thread(self._store.journal, row.id, last, PAGE):
                for entry in map(Entry.of, page):
                    yield run_event(entry.seq, entry.at.timestamp(), entry.kind, (entry.phase, entry.number), entry.detail, entry.node)
                last = page[-1].seq
            # What was noted in passing until now is in the lanes, which are told behind the round's opening: that may be waiting here still.
            told, drawn = (live.qsize(), driver.drawn()) if isinstance(driver, Driver) and live is not None else (0, None)
            while live is not None:
                if told == 0 and drawn is not None:
                    yield drawn
                event, told = await live.get(), told - 1
                if isinstance(event, End):
                    if event is End.OVER:
                        break
                    raise Unreachable(event.value, where=f"run {row.id}", hint="watch again from the last event on")
                # What was journaled between subscribing and reading has been sent already.
                if event.sequence > last or (event.sequence == 0 and (told < 0 or event.kind != "stage")):
                    yield event
        finally:
            if driver is not None and live is not None:
                driver.feed.leave(live)

    async def steer(self, run: str, action: str, reason: str, by: Author) -> RunInfo:
        """Stop, pause or resume; the errors are those of ``Engine.steer``."""
        await self.engine.steer(run, action, reason, partial(self.note, by, f"run {action}", reason=reason))
        return await self.run(run)

    def _site(self, member: Member) -> Site:
        """A site as people see it."""
        connected = self.engine.sessions.get(member.name) is not None
        seen, revoked = _seconds(member.last_seen), member.revoked_at is not None
        return Site(member.name, member.project, connected, tuple(member.datasets), seen, member.version, revoked)

    def _info(self, row: RunRow, end: tuple[str, int] | None = None) -> RunInfo:
        """A run as people see it; ``end`` is the phase and round at which it ended."""
        driver = self.engine.driver(row.id)
        run = driver.book.run if driver else None
        phase, number = (str(run.phase), run.number) if run else end or ("", 0)
        return RunInfo(
            run=row.id,
            project=row.project,
            name=row.name,
            status=("paused" if run.paused and run.status == RUNNING else run.status) if run else row.status,
            reason=run.reason if run else row.reason,
            phase=phase,
            number=number,
            rounds=_rounds(row.plan),
            created=_seconds(row.created),
            finished=_seconds(row.finished),
        )


@lru_cache(maxsize=1024)
def _rounds(plan: str) -> int:
    """How many rounds a stored plan asks for."""
    return Plan.from_toml(plan).strategy.rounds


def _seconds(at: datetime | None) -> float:
    """Seconds since the epoch; 0 for never."""
    return at.timestamp() if at else 0.0
