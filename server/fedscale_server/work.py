"""What a run of either kind stands on: the server around it, and work that is carried through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale.secagg.authority import RosterAuthority
    from fedscale_server.curves import Curves
    from fedscale_server.sessions import Sessions
    from fedscale_server.tally import Tally

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The server around a run.

    Args:
        sessions: who is connected.
        clock: where timestamps come from.
        finished: called with the run's id once whoever drove it has come to an end.
        tally: counts what happens.
        rosters: signs the rosters of secure aggregation.
        curves: take closed rounds elsewhere.
    """

    sessions: Sessions
    clock: Clock
    finished: Callable[[str], None]
    tally: Tally
    rosters: RosterAuthority | None = None
    curves: Curves | None = None


class Errands:
    """Work that is carried through even when whoever asked for it goes away: half a step would be journaled but never done."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Begin something; what is returned may be waited for, or not."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)

    async def settled(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)
