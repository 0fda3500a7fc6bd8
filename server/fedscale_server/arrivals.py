"""Nodes that connect at the same time are written down together: when all come back at once, each does not wait for a commit of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedscale_server.registry import Registry
    from fedscale_server.store.admission import Arrival
    from fedscale_server.store.tables import Member


class Arrivals:
    """Takes nodes in.

    Args:
        registry: knows them.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: list[tuple[Arrival, asyncio.Future[Member]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def take(self, arrival: Arrival) -> Member:
        """The member that has arrived.

        Raises:
            FedscaleError: it is not let in; or whatever the database refuses with.
        """
        come: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._waiting.append((arrival, come))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await come

    async def _write(self) -> None:
        """Take in all that wait, then all that came meanwhile, until nobody does."""
        while self._waiting:
            some, self._waiting = self._waiting, []
            writing = asyncio.to_thread(self._registry.seen, [arrival for arrival, _ in some])
            (found,) = await asyncio.gather(writing, return_exceptions=True)
            for number, (_, come) in enumerate(some):
                answer = found if isinstance(found, BaseException) else found[number]
                if come.done():
                    continue
                if isinstance(answer, BaseException):
                    come.set_exception(answer)
                else:
                    come.set_result(answer)
        self._writing = None
