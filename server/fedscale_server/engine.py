"""All runs of a server: starts them, brings them back after a restart, and tells them who comes and goes."""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from fedscale.errors import Conflict, FedscaleError, NotFound, PlanError
from fedscale.events import Event, Pause, Resume, Stop
from fedscale.plan import Plan
from fedscale_server.driver import Driver
from fedscale_server.logbook import Logbook
from fedscale_server.spool import Spool

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale_server.sessions import Session, Sessions
    from fedscale_server.store.blobs import Blobs
    from fedscale_server.store.store import Store
    from fedscale_server.store.tables import RunRow

log = structlog.get_logger()


class Engine:
    """The runs of one server.

    Args:
        store: the database.
        bundles: app bundles by content.
        folder: where each run keeps its files.
        sessions: who is connected.
        clock: where timestamps come from.
    """

    def __init__(self, store: Store, bundles: Blobs, folder: Path, sessions: Sessions, clock: Clock) -> None:
        self.store, self.bundles, self.sessions, self.clock = store, bundles, sessions, clock
        self._folder = folder
        self._drivers: dict[str, Driver] = {}

    async def start(self) -> None:
        """Bring back every run that was not finished when the server went away."""
        for row in await asyncio.to_thread(self.store.unfinished):
            await self._launch(row)

    async def _launch(self, row: RunRow) -> None:
        try:
            book = await asyncio.to_thread(Logbook.open, self.store, self.spool(row.id), row)
        except FedscaleError as error:
            # One damaged run must not keep the server, and all other runs, from starting.
            log.exception("a run cannot be brought back", run=row.id)
            await asyncio.to_thread(self.store.finish, row.id, "failed", f"the server could not bring the run back: {error}", {}, self.clock.now())
            return
        driver = Driver(book, self.sessions, self.clock, self._forget)
        self._drivers[row.id] = driver
        await driver.start()

    def _forget(self, driver: Driver) -> None:
        self._drivers.pop(driver.id, None)

    def stop(self) -> None:
        """The server goes down; nothing is lost, so the runs hear nothing, and nodes and watchers may come back."""
        self.sessions.close_all()
        for driver in self._drivers.values():
            driver.halt()

    def spool(self, run: str) -> Spool:
        """The files of a run."""
        return Spool(self._folder / run)

    def driver(self, run: str) -> Driver | None:
        """The driver of a run that is not finished."""
        return self._drivers.get(run)

    def drivers(self) -> list[Driver]:
        """The drivers of all runs that are not finished."""
        return list(self._drivers.values())

    async def submit(self, project: str, plan_toml: str, bundle: str, key: str) -> RunRow:
        """Start a run; the same ``key`` gives back the run it started before.

        Raises:
            PlanError: the plan is not valid, or its strategy exists only in Python.
            NotFound: no such project or bundle.
        """
        plan = Plan.from_toml(plan_toml)
        if plan.strategy.name == "custom":
            raise PlanError("a strategy composed in Python cannot be submitted", hint="use one of the named strategies")
        if not await asyncio.to_thread(self.bundles.has, bundle):
            raise NotFound("the app bundle is not on the server", where=bundle[:12], hint="submit with: fedscale run submit job.toml")
        name = f"{plan.job.name.lower()}-{secrets.token_hex(3)}"
        row = await asyncio.to_thread(
            self.store.create_run, name, project, plan.job.name, plan.to_toml(), plan.digest, bundle, key or secrets.token_hex(8), self.clock.now()
        )
        if row.finished is None and row.id not in self._drivers:
            await self._launch(row)
        return row

    async def steer(self, run: str, action: str, reason: str) -> None:
        """Stop, pause or resume a run.

        Raises:
            Conflict: the run is over.
        """
        events: dict[str, Event] = {"stop": Stop(reason or "stopped by the coordinator"), "pause": Pause(), "resume": Resume()}
        driver = self._drivers.get(run)
        if driver is None:
            row = await asyncio.to_thread(self.store.run, run)
            raise Conflict(f"run {row.id} is {row.status} already")
        if action not in events:
            raise NotFound(f"no action '{action}'", hint="use stop, pause or resume")
        await driver.handle(events[action])
        if driver.book.row.finished is None:
            await asyncio.to_thread(self.store.set_status, run, "paused" if driver.book.run.paused else "running")

    async def connected(self, session: Session) -> None:
        """A node's control stream is open."""
        self.sessions.add(session)
        for driver in self.drivers():
            await driver.connected(session.node)

    async def disconnected(self, session: Session) -> None:
        """A node's control stream is gone; nothing happens if the node has come back on another."""
        if self.sessions.remove(session):
            for driver in self.drivers():
                await driver.disconnected(session.node)

    def locate(self, digest: str, project: str | None) -> Path:
        """The file of a blob: a bundle, or a model of a run of the project (``None``: of any run).

        Raises:
            NotFound: there is none, or it belongs to another project.
        """
        for driver in self.drivers():
            row, spool = driver.book.row, driver.book.spool
            if project not in (None, row.project):
                continue
            if row.bundle == digest:
                return self.bundles.path(digest)
            if spool.blobs.has(digest):
                return spool.blobs.path(digest)
        if project is None:
            return next((b.path(digest) for b in self._all_blobs() if b.has(digest)), None) or self.bundles.path(digest)
        raise NotFound("no such blob", where=digest[:12])

    def _all_blobs(self) -> list[Blobs]:
        """Blob folders of all runs, finished ones too."""
        return [self.spool(folder.name).blobs for folder in self._folder.iterdir() if folder.is_dir()] if self._folder.is_dir() else []

    def now(self) -> datetime:
        """The time of day."""
        return self.clock.now()
