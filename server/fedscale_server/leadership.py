"""Which of several coordinators on one database leads: the others stand by, and one of them takes over when it is gone.

Whoever leads renews its lease in time or stops by itself; whoever was kept from running until the lease had ended finds that
out before it serves anybody, and the database refuses what it writes until then. A coordinator alone takes the lease for
ever, so that no other one is ever mistaken for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from fedscale.errors import ConfigError, Unreachable
from fedscale_server.store.leases import STANDBY

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale_server.store.store import Store
    from fedscale_server.store.tables import Lease

log = structlog.get_logger()
Turn: TypeAlias = Callable[[], Awaitable[None]]
P = ParamSpec("P")
T = TypeVar("T")
KNOWN = timedelta(days=1)  # nodes are told of a coordinator that has been away for less
# Of a lease: how soon after its beginning it is renewed, and how soon whoever stands by looks again.
RENEW, LOOK = 1 / 3, 1 / 20
MOST_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a coordinator is reached: ``host:port`` for members and for bearers of tickets."""

    address: str
    enrolment: str


class Leadership:
    """Whether this process leads, and what begins and ends with that.

    Args:
        store: the database; it is told in which epoch it may write.
        clock: the time.
        token: this coordinator's own; a lease under it is its own, of an earlier life.
        seconds: how long a lease lasts; infinite for a coordinator that shares its database with nobody.
        found: called, in a thread, with the addresses of all coordinators when they are others than before.
    """

    def __init__(self, store: Store, clock: Clock, token: str, seconds: float, found: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self._store, self._clock, self._token, self._seconds, self._found = store, clock, token, seconds, found
        self._until, self._serving, self._leader = 0.0, False, ""
        self._place, self._others = Place("", ""), tuple[Place, ...]()
        self._keeping: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[Any]] = set()
        store.fence(STANDBY)

    @property
    def alone(self) -> bool:
        """Whether there are no other coordinators."""
        return self._seconds == float("inf")

    @property
    def leads(self) -> bool:
        """Whether this coordinator serves at this moment; from memory."""
        return self._serving and (self.alone or self._clock.monotonic() < self._until)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where this coordinator and the others are, this one first; nothing for one alone."""
        return () if self.alone else (self._place, *self._others)

    def check(self) -> None:
        """Refuse to serve while another coordinator leads.

        Raises:
            Unreachable: with whom to ask instead.
        """
        if not self.leads:
            why = f"{self._leader} leads" if self._leader and self._leader != self._place.address else "nobody leads at the moment"
            raise Unreachable("this coordinator stands by", where=self._place.address, why=why, hint="call another one of the federation")

    def held(self) -> Lease | None:
        """The lease as the database has it."""
        return self._store.leases.held()

    async def begin(self, place: Place, rise: Turn, fall: Turn) -> None:
        """Lead, at once when alone and else as soon as nobody does.

        Args:
            place: where this coordinator is reached.
            rise: called when it begins to lead.
            fall: called when it leads no more.

        Raises:
            ConfigError: it is alone, and the database is another coordinator's.
        """
        self._place = place
        if not self.alone:
            self._keeping = asyncio.create_task(self._keep(rise, fall))
            return
        epoch = await self._won(back=True)
        if not epoch:
            hint = "set 'replicas = true' and 'blobs' in the server.toml of each, or give each a database of its own"
            raise ConfigError("the database is another coordinator's", why=f"{self._leader} leads", hint=hint)
        self._store.fence(epoch)
        await rise()
        self._serving = True

    async def failed(self) -> None:
        """Wait for what should never end: the task that watches the lease; raises what ended it."""
        # Whoever gives up waiting has not given up the lease.
        await (asyncio.shield(self._keeping) if self._keeping else asyncio.Event().wait())

    async def end(self) -> None:
        """Stand down, so that another one leads at once."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        while self._asking:  # what was asked of the database may have been to lead
            await asyncio.wait(self._asking)
        with suppress(SQLAlchemyError):  # then it ends by itself
            await self._ask(self._store.leases.free, self._token, self._clock)

    async def _ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A blocking call in a thread, which ``end`` waits for even when nobody else does any more."""
        task = asyncio.create_task(asyncio.to_thread(call, *args, **kwargs))
        self._asking.add(task)
        task.add_done_callback(self._asked)
        return await asyncio.shield(task)

    def _asked(self, task: asyncio.Task[Any]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # somebody has seen it, or nobody cares any more

    # ------------------------------------------------------------------------------------------------------- one lease

    async def _keep(self, rise: Turn, fall: Turn) -> None:
        """Stand by and lead in turn, until cancelled."""
        back = True
        while True:
            try:
                asked = self._clock.monotonic()
                epoch = await self._won(back=back)
                back = False
                if epoch:
                    self._until = asked + self._seconds
                    await self._reign(epoch, rise, fall)
            except (OSError, SQLAlchemyError) as error:
                log.warning("the database does not answer", error=type(error).__name__)
            await asyncio.sleep(min(self._seconds * LOOK, MOST_LOOK))

    async def _won(self, *, back: bool) -> int | None:
        """The epoch of a lease just taken, ``None`` while it is somebody else's; notes who else is there."""
        leases = self._store.leases
        epoch = await self._ask(leases.take, self._place.address, self._token, self._clock, self._seconds, back=back)
        if not epoch:
            lease = await self._ask(leases.held)
            self._leader = lease.holder if lease else ""
        if not self.alone:
            await self._look_around()
        return epoch

    async def _look_around(self) -> None:
        """Say that this coordinator is there, and learn who else is."""
        leases = self._store.leases
        await self._ask(leases.appear, self._token, self._place.address, self._place.enrolment, self._clock)
        found = await self._ask(leases.replicas, self._clock.now() - KNOWN)
        others = tuple(Place(row.address, row.enrolment) for row in found if row.token != self._token)
        if others != self._others:
            self._others = others
            await self._ask(self._found, [place.address for place in self.places])

    async def _reign(self, epoch: int, rise: Turn, fall: Turn) -> None:
        """Lead until the lease is lost. It is renewed from the first moment on, for bringing back many runs may take a while."""
        self._store.fence(epoch)
        log.info("this coordinator leads", epoch=epoch)
        holding = asyncio.create_task(self._hold(epoch))
        try:
            await rise()
            self._serving = True
            await holding
            log.warning("this coordinator leads no more", epoch=epoch)
        finally:
            self._serving = False
            self._store.fence(STANDBY)
            holding.cancel()
            await fall()

    async def _hold(self, epoch: int) -> None:
        """Renew the lease until somebody else has it, or nobody can say whether."""
        while True:
            await asyncio.sleep(self._seconds * RENEW)
            renewing = asyncio.create_task(self._renewed(epoch))
            await asyncio.wait({renewing}, timeout=max(self._until - self._clock.monotonic(), self._seconds * RENEW))
            if not renewing.done() or not renewing.result():
                renewing.cancel()
                return

    async def _renewed(self, epoch: int) -> bool:
        """Whether the lease is still this coordinator's; a database that refuses is asked again while there is time."""
        while True:
            asked = self._clock.monotonic()
            try:
                mine = await self._ask(self._store.leases.renew, epoch, self._clock, self._seconds)
            except SQLAlchemyError as error:
                log.warning("the lease is not renewed", error=type(error).__name__)
                await asyncio.sleep(self._seconds * LOOK)
                continue
            self._until = asked + self._seconds if mine else asked
            with suppress(OSError, SQLAlchemyError):  # to know the others is of use, but leads to nothing by itself
                await self._look_around()
            return mine
