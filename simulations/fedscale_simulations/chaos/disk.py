"""A disk that takes no more: every write to a file fails, or no file can be opened, for a while.

Limits of the running process stand in for the disk (``prlimit(2)``), so that neither root nor a file system of our own is
needed: with a largest file size of 0 every write fails with EFBIG at the call where a full disk fails with ENOSPC, and with
no descriptor left every open fails with EMFILE.
"""

from __future__ import annotations

import random
import resource
import time
from dataclasses import dataclass
from enum import StrEnum

from fedscale_simulations.chaos.kill import Who, chosen, named
from fedscale_simulations.chaos.troupe import Troupe

LONGEST = 2.0
FEW = 4


class Shortage(StrEnum):
    """What runs out."""

    FULL = "full"
    DESCRIPTORS = "descriptors"


LIMITS = {Shortage.FULL: (resource.RLIMIT_FSIZE, 0), Shortage.DESCRIPTORS: (resource.RLIMIT_NOFILE, FEW)}


@dataclass(frozen=True, slots=True)
class Disk:
    """Room or descriptors run out and come back.

    Args:
        who: whom it meets.
        kinds: what may run out.
        longest: seconds at most.
    """

    who: Who
    kinds: tuple[Shortage, ...] = tuple(Shortage)
    longest: float = LONGEST

    def inflict(self, troupe: Troupe, chance: random.Random) -> str:
        """Take it away, wait, give it back."""
        kind, victims = chance.choice(self.kinds), chosen(self.who, troupe.job.nodes, chance)
        limit, least = LIMITS[kind]
        pids = [troupe.cast.pid(name) for name in victims]
        before = {pid: resource.prlimit(pid, limit) for pid in pids}
        for pid, (_, most) in before.items():
            resource.prlimit(pid, limit, (least, most))
        time.sleep(chance.uniform(0.05, self.longest))
        for pid, limits in before.items():
            resource.prlimit(pid, limit, limits)
        return f"{kind}, {named(victims)}"
