"""Wall clocks that jump: somebody sets them, a time server lies, a virtual machine wakes up."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fedscale_simulations.chaos.kill import Who, chosen, named
from fedscale_simulations.chaos.troupe import Troupe

# Certificates live for a day and are renewed at half their life; one that was made tomorrow is refused everywhere else, and rightly so.
MOST_HOURS = 11.0


@dataclass(frozen=True, slots=True)
class Jump:
    """The wall clocks of processes jump, and stay wrong until they jump again.

    Args:
        who: whom it meets.
        hours: how far from the right time at most, either way.
    """

    who: Who
    hours: float = MOST_HOURS

    def inflict(self, troupe: Troupe, chance: random.Random) -> str:
        """Set their clocks, each by itself."""
        victims = chosen(self.who, troupe.job.nodes, chance)
        for name in victims:
            file = troupe.clock(name)
            draft = file.with_suffix(".draft")
            draft.write_text(repr(3600 * chance.uniform(-self.hours, self.hours)), encoding="utf-8")
            draft.replace(file)
        return named(victims)
