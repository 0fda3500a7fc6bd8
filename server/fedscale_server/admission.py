"""Who may upload now: open uploads share a budget of memory, and whoever finds it spent is told when to come back."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fedscale.errors import Busy, FedscaleError
from fedscale.wire.limits import FRAME, LOOKAHEAD

# What is held of one upload at most: what gRPC has read ahead, and a frame that waits for its turn. Only the few that have one hold more.
LEAST_COST, MOST_COST = 64 << 10, LOOKAHEAD + FRAME
IDLE_SECONDS = 10.0
BASE_SECONDS, MOST_SECONDS = 0.5, 30.0
MOST_PROMISES = 4096


@dataclass(eq=False, slots=True)
class Pass:
    """Leave for one upload to be open.

    Args:
        cost: bytes of the budget it takes.
        ousted: set to the reason once it must end.
        moved: when its last frame arrived.
    """

    cost: int
    ousted: asyncio.Future[FedscaleError]
    moved: float

    def oust(self, error: FedscaleError) -> None:
        """Let it end."""
        if not self.ousted.done():
            self.ousted.set_result(error)


class Admission:
    """The passes of all open uploads.

    Args:
        budget: bytes of memory they may take together.
        monotonic: seconds that only go forward.
    """

    def __init__(self, budget: int, monotonic: Callable[[], float]) -> None:
        self._budget, self._monotonic = budget, monotonic
        self._open: set[Pass] = set()
        self._promised: deque[float] = deque(maxlen=MOST_PROMISES)

    def enter(self, size: int) -> Pass:
        """Leave for an upload of ``size`` bytes; where the budget is spent, the one that has stood still longest makes room.

        Raises:
            Busy: no room; it says when there may be some.
        """
        now = self._monotonic()
        cost = min(max(size, LEAST_COST), MOST_COST)
        while self._open and self._spent() + cost > self._budget:
            idlest = min(self._open, key=lambda each: each.moved)
            if now - idlest.moved < IDLE_SECONDS:
                raise self._busy(now, cost)
            self.leave(idlest)
            idlest.oust(self._busy(now, cost))
        made = Pass(cost, asyncio.get_running_loop().create_future(), now)
        self._open.add(made)
        return made

    def guest(self) -> Pass:
        """Leave for one of the few people, who take nothing from the nodes."""
        return Pass(0, asyncio.get_running_loop().create_future(), self._monotonic())

    def moved(self, given: Pass) -> None:
        """A frame has arrived."""
        given.moved = self._monotonic()

    def leave(self, given: Pass) -> None:
        """The upload is over."""
        self._open.discard(given)

    def _spent(self) -> int:
        return sum(each.cost for each in self._open)

    def _busy(self, now: float, cost: int) -> Busy:
        """Come back later; the more have been told so, the later, so that they do not come back together."""
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        crowd = 1 + len(self._promised) * cost / self._budget
        seconds = min(MOST_SECONDS, BASE_SECONDS * crowd) * random.SystemRandom().uniform(0.5, 1.5)
        self._promised.append(now + seconds)
        return Busy("the server receives as many answers as it can", hint="come back later", seconds=seconds)
