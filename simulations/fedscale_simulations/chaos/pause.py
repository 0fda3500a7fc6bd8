"""Processes that stand still: SIGSTOP, and SIGCONT a while later."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass

from fedscale_simulations.chaos.kill import Who, chosen, named
from fedscale_simulations.chaos.troupe import Troupe

SHORT, LONG = 0.5, 6.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Processes stand still, some for longer than the others believe in them.

    Args:
        who: whom it meets.
        longest: seconds at most; a third of the pauses are that long or nearly.
    """

    who: Who
    longest: float = LONG

    def inflict(self, troupe: Troupe, chance: random.Random) -> str:
        """Freeze, wait, thaw."""
        victims = chosen(self.who, troupe.job.nodes, chance)
        for name in victims:
            troupe.cast.send(name, signal.SIGSTOP)
        time.sleep(chance.uniform(0.7, 1.0) * self.longest if chance.random() < 1 / 3 else chance.uniform(0.0, SHORT))
        for name in victims:
            troupe.cast.send(name, signal.SIGCONT)
        return named(victims)
