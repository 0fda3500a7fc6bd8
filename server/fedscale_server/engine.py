"""All runs of a server: starts them, brings them back after a restart, and tells them who comes and goes."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from fedscale.errors import Conflict, FedscaleError, NotFound, PlanError, Unreachable
from fedscale.events import Event, Pause, Resume, Stop
from fedscale.plan import Plan
from fedscale.secagg.authority import RosterAuthority
from fedscale_server.courier import Courier
from fedscale_server.driver import Driver
from fedscale_server.farewells import Farewells
from fedscale_server.letterbook import Letterbook
from fedscale_server.logbook import Logbook, bare_record
from fedscale_server.spool import Keeping, Spool
from fedscale_server.store.blobs import Blobs
from fedscale_server.store.depot import Depot, Shelf
from fedscale_server.tally import Tally
from fedscale_server.work import World

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale.strategy import Strategy
    from fedscale_server.curves import Curves
    from fedscale_server.sessions import Session, Sessions
    from fedscale_server.store.store import Store
    from fedscale_server.store.tables import RunRow

log = structlog.get_logger()
# What damaged rows and files of a run show themselves by when it is brought back.
DAMAGE = (FedscaleError, FileNotFoundError, LookupError, TypeError, ValueError, ArithmeticError)
# A full disk, a database that is away: the run is whole and goes on where it is when they are back.
PASSING = (OSError, SQLAlchemyError)
AGAIN_SECONDS = 1.0
ANSWERS = "answers"  # the part of the depot for answers of open rounds


class Engine:
    """The runs of one server.

    Args:
        store: the database.
        bundles: app bundles by content.
        folder: where each run keeps its files.
        sessions: who is connected.
        clock: where timestamps come from.
        keeping: where the answers of open rounds are kept.
        rosters: signs the rosters of secure aggregation; without it there is none.
        depot: where other servers find the models of runs; ``None`` where there are no others.
    """

    def __init__(
        self,
        store: Store,
        bundles: Blobs,
        folder: Path,
        sessions: Sessions,
        clock: Clock,
        *,
        keeping: Keeping = Keeping.HERE,
        rosters: RosterAuthority | None = None,
        depot: Depot | None = None,
    ) -> None:
        self.store, self.bundles, self.sessions, self.clock = store, bundles, sessions, clock
        self._folder, self._keeping, self._rosters, self._depot = folder, keeping, rosters, depot
        self.tally = Tally()
        self.curves: Curves | None = None  # where closed rounds go besides, if anywhere: to be set before the start
        self._farewells = Farewells(sessions)
        self._drivers: dict[str, Driver | Courier] = {}
        self._launching = asyncio.Lock()
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._retries: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bring back every run that was not finished when the server, or the one that led before it, went away."""
        await asyncio.to_thread(self.bundles.clean)
        if self._depot and not await asyncio.to_thread(self.store.runs):
            await asyncio.to_thread(self._depot.begin)
        unfinished = await asyncio.to_thread(self.store.unfinished)
        await asyncio.to_thread(self._sweep, {row.id for row in unfinished})
        for row in unfinished:
            await self._launch(row.id)
        await asyncio.to_thread(self._farewells.load, self.store, self.clock.now())

    def _sweep(self, unfinished: set[str]) -> None:
        """Clean up behind runs that are over: the server may have died before it could."""
        for folder in self._folders():
            if folder.name not in unfinished:
                spool = self.spool(folder.name)
                spool.clear()
                spool.blobs.clean()
        with suppress(OSError):  # a depot that is away is swept by whoever leads next
            for key in self._depot.keys(ANSWERS) if self._depot else ():
                _, run, name, _ = key.split("/")
                if run not in unfinished and (shelf := self._shelf(f"{ANSWERS}/{run}")):
                    shelf.delete(name)

    async def _launch(self, run: str) -> None:
        """Begin to drive a run that is not over and has no driver; later, where disk or database refuse."""
        async with self._launching:
            try:
                driver = await self._brought(run)
            except PASSING:
                log.exception("a run waits until the server can store it", run=run)
                self._wait(run)
                return
            self._waiting.pop(run, None)
            if driver is not None:
                await driver.start()

    async def _brought(self, run: str) -> Driver | Courier | None:
        """A new driver of a run, ``None`` when it needs none.

        Raises:
            OSError: disk or depot refuse, or do not show all that the run needs.
            SQLAlchemyError: the database refuses.
        """
        store = self.store.of_term()
        row = await asyncio.to_thread(store.run, run)
        if row.finished is not None or run in self._drivers:
            return None
        await asyncio.to_thread(self.bundles.share, row.bundle)
        try:
            book = await asyncio.to_thread(self._opened, store, row)
        except DAMAGE as error:
            if self._depot and isinstance(error, (NotFound, FileNotFoundError)):
                # Another server may have it, or a file system shows it later: no reason to end the run for all of them.
                raise OSError("the shared blobs are not all there") from error
            log.exception("a run cannot be brought back", run=run)
            await self._abandon(row, error)
            return None
        if book.row.finished is not None:  # the server died between the run's last line and its end, which has just been written
            return None
        world = World(self.sessions, self.clock, self._forget, self.tally, self._rosters, self.curves)
        driver = self._drivers[run] = Courier(book, world) if isinstance(book, Letterbook) else Driver(book, world)
        return driver

    def _opened(self, store: Store, row: RunRow) -> Logbook | Letterbook:
        """A run as it is stored. Blocks; raises whatever is wrong with it."""
        plan = Plan.from_toml(row.plan)
        strategy = plan.strategy.build()
        self._require_keeping(strategy)
        kind = Letterbook if strategy.led else Logbook
        return kind.open(store, self.spool(row.id, masked=plan.secagg.enabled), row)

    def _wait(self, run: str) -> None:
        """Bring a run back a little later, again and again."""
        loop = asyncio.get_running_loop()
        self._waiting[run] = loop.call_later(AGAIN_SECONDS, self._retry, run)

    def _retry(self, run: str) -> None:
        """Try now, with a task that is known for as long as it runs."""
        task = asyncio.create_task(self._launch(run))
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)

    async def _abandon(self, row: RunRow, error: Exception) -> None:
        """One damaged run must not keep the server, and all other runs, from starting."""
        told = str(error) if isinstance(error, FedscaleError) else f"{type(error).__name__}, see its log"
        reason, now = f"the server could not bring the run back: {told}", self.clock.now()
        record = json.loads(bare_record(row, "failed", reason, now).to_json())
        await asyncio.to_thread(self.store.finish, row.id, "failed", reason, record, now)
        with suppress(OSError):  # the next start sweeps
            await asyncio.to_thread(lambda: self.spool(row.id).clear())

    def _forget(self, run: str) -> None:
        """A run's driver has come to its end: that of the run, or of what could be stored."""
        driver = self._drivers.pop(run)
        if driver.book.row.finished is None:
            self._wait(run)
        elif isinstance(driver, Courier):
            self._farewells.over(run, driver.book.run.members)
        elif driver.book.plan.privacy:
            self._farewells.end(run, driver.book.row.project)

    def stop(self) -> None:
        """The server goes down; nothing is lost, so the runs hear nothing, and nodes and watchers may come back."""
        self.sessions.close_all()
        for driver in self.drivers():
            driver.halt()
        for waiting in self._waiting.values():
            waiting.cancel()

    async def settled(self) -> None:
        """Wait until no run is in the middle of a step, and a moment for its curves."""
        await asyncio.gather(*self._retries, return_exceptions=True)
        for driver in self.drivers():
            await driver.errands.settled()
        if self.curves:
            await asyncio.to_thread(self.curves.close)

    async def rest(self) -> None:
        """Another server leads: leave the runs to it, and wait until none is in the middle of a step here."""
        self.stop()
        await self.settled()
        self.stop()
        self._drivers.clear()
        self._waiting.clear()

    def spool(self, run: str, *, masked: bool = False) -> Spool:
        """The files of a run; ``masked`` for one whose answers are to be read or written and lie under masks."""
        common = self._shelf(f"{ANSWERS}/{run}") if masked and self._keeping is Keeping.COMMON else None
        lasting = self._keeping is Keeping.HERE or common is not None
        return Spool(self._folder / run, lasting=lasting, shelf=self._shelf(f"runs/{run}"), common=common)

    def _shelf(self, collection: str) -> Shelf | None:
        """What this server shares under a name, in the epoch of now; ``None`` where it shares nothing."""
        return Shelf(self._depot, collection, self.store.epoch) if self._depot else None

    def driver(self, run: str) -> Driver | Courier | None:
        """The driver of a run that is not finished."""
        return self._drivers.get(run)

    def courier(self, run: str) -> Courier:
        """The courier of a led run that is not finished.

        Raises:
            Unreachable: it waits for disk or database.
            Conflict: there is no led run of that id that is not over.
        """
        driver = self._drivers.get(run)
        if not isinstance(driver, Courier):
            self.check(run)
            raise Conflict(f"run {run} is over, or led by nobody but the coordinator", hint="see: fedscale run show RUN")
        return driver

    def check(self, run: str) -> None:
        """Tell a run that has no driver because it is over from one that waits for disk or database.

        Raises:
            Unreachable: it waits, and goes on after that.
        """
        if run in self._waiting:
            raise Unreachable("the server cannot store the run at the moment", where=f"run {run}", hint="try again; see the server's log")

    def drivers(self) -> list[Driver | Courier]:
        """The drivers of all runs that are not finished."""
        return list(self._drivers.values())

    async def submit(self, project: str, plan_toml: str, bundle: str, key: str, note: Callable[[str], object] = lambda _: None) -> RunRow:
        """Start a run; the same ``key`` gives back the run it started before. ``note`` is told the id first, and prevents the run by raising.

        Raises:
            PlanError: the plan is not valid, or its strategy exists only in Python.
            NotFound: no such project or bundle.
        """
        return await asyncio.shield(asyncio.create_task(self._submit(project, plan_toml, bundle, key, note)))

    async def _submit(self, project: str, plan_toml: str, bundle: str, key: str, note: Callable[[str], object]) -> RunRow:
        """Everything of ``submit``, to its end even when the caller goes away: a run that exists is driven."""
        plan = Plan.from_toml(plan_toml)
        if plan.strategy.name == "custom":
            raise PlanError("a strategy composed in Python cannot be submitted", hint="use one of the named strategies")
        strategy = plan.strategy.build()
        await asyncio.to_thread(strategy.check)
        if strategy.buffer:
            raise PlanError(f"'{plan.strategy.name}' is asynchronous, which only simulations are so far", where="strategy.name", hint="use fedavg")
        self._require_keeping(strategy)
        if plan.secagg.enabled and self._rosters is None:
            raise PlanError("this server has no authority to sign rosters with", where="secagg")
        if plan.secagg.enabled and self._keeping is Keeping.NOWHERE:
            why = "a node gives its masked vector once, so after a crash nobody could send it again"
            raise PlanError('no secure aggregation under durability "resend"', where="secagg", why=why, hint='start the server with "spool"')
        if not await asyncio.to_thread(self.bundles.find, bundle):
            raise NotFound("the app bundle is not on the server", where=bundle[:12], hint="submit with: fedscale run submit job.toml")
        name = f"{plan.job.name.lower()}-{secrets.token_hex(3)}"
        facts = (name, project, plan.job.name, plan.to_toml(), plan.digest, bundle, key or secrets.token_hex(8), self.clock.now())
        row = await asyncio.to_thread(self.store.create_run, *facts, partial(note, name))
        await self._launch(row.id)
        return row

    def _require_keeping(self, strategy: Strategy) -> None:
        """Refuse a led run where answers are not kept as it needs them.

        Raises:
            PlanError: they are not.
        """
        if strategy.led and self._keeping is not Keeping.HERE:
            why = "what the sites have replied must be here when its leader comes back, and is nobody else's business"
            raise PlanError("this server keeps no replies", where="strategy.name", why=why, hint='start it alone, with durability "spool"')

    async def steer(self, run: str, action: str, reason: str, note: Callable[[str], object] = lambda _: None) -> None:
        """Stop, pause or resume a run, of whose id ``note`` is told first; what it raises leaves the run as it is.

        Raises:
            Conflict: the run is over.
        """
        events: dict[str, Event] = {"stop": Stop(reason or "stopped by the coordinator"), "pause": Pause(), "resume": Resume()}
        if action not in events:
            raise NotFound(f"no action '{action}'", hint="use stop, pause or resume")
        row = await asyncio.to_thread(self.store.run, run)
        driver = self._drivers.get(row.id)
        if driver is None:
            self.check(row.id)
            raise Conflict(f"run {row.id} is {row.status} already")
        await asyncio.to_thread(note, row.id)
        await driver.handle(events[action])
        if driver.book.row.finished is None:
            await asyncio.to_thread(self.store.set_status, row.id, "paused" if driver.book.run.paused else "running")

    def connected(self, session: Session) -> None:
        """A node's control stream is open."""
        self.sessions.add(session)
        self._farewells.greet(session.node)
        for driver in self.drivers():
            driver.connected(session.node)

    async def tell_ends(self, session: Session, runs: Sequence[str]) -> None:
        """Tell a node which of some runs will not ask it anything any more."""
        await self._farewells.answer(session, runs, self.store)

    def disconnected(self, session: Session) -> None:
        """A node's control stream is gone; nothing happens if the node has come back on another."""
        if self.sessions.remove(session):
            for driver in self.drivers():
                driver.disconnected(session.node)

    def locate(self, digest: str, project: str | None, node: str) -> tuple[Path, Driver | Courier | None]:
        """The file of a blob, and the run that it is fetched for if that is not over.

        Args:
            digest: its SHA-256.
            project: only bundles and models of its unfinished runs; ``None`` for any run.
            node: who asks; of several runs with the same blob, the one it works for is meant.

        Raises:
            NotFound: there is none, or it belongs to another project.
        """
        holders = [d for d in self.drivers() if project in (None, d.book.row.project) and d.holds(digest)]
        driver = max(holders, key=lambda d: d.involves(node), default=None)
        if driver is not None:
            return (self.bundles if driver.book.row.bundle == digest else driver.book.spool.blobs).path(digest), driver
        if project is None:
            # Of runs that came to the same model, not all have kept it.
            places = [*(self.spool(run).blobs for run in self.store.holders(digest)), self.bundles]
            return next((blobs for blobs in places if blobs.find(digest)), self.bundles).path(digest), None
        raise NotFound("no such blob", where=digest[:12])

    def _folders(self) -> list[Path]:
        """The folders of all runs."""
        return [folder for folder in self._folder.iterdir() if folder.is_dir()] if self._folder.is_dir() else []

    def now(self) -> datetime:
        """The time of day."""
        return self.clock.now()
