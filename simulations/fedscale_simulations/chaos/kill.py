"""SIGKILL at random moments."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from enum import StrEnum

from fedscale_simulations.chaos.troupe import SERVER, Troupe

LONGEST_ABSENCE = 0.5


class Who(StrEnum):
    """Whom a fault meets."""

    SERVER = "server"
    NODE = "node"
    BOTH = "both"


def chosen(who: Who, nodes: tuple[str, ...], chance: random.Random) -> tuple[str, ...]:
    """The processes that the next fault meets: with ``both`` the coordinator, a node, or the two at once."""
    node = chance.choice(nodes)
    if who is Who.BOTH:
        return chance.choice(((SERVER,), (node,), (SERVER, node)))
    return (SERVER,) if who is Who.SERVER else (node,)


def named(victims: tuple[str, ...]) -> str:
    """What kind of processes they are."""
    return " and ".join("server" if name == SERVER else "node" for name in victims)


@dataclass(frozen=True, slots=True)
class Kill:
    """Processes die without notice and are started again."""

    who: Who

    def inflict(self, troupe: Troupe, chance: random.Random) -> str:
        """Kill, leave it dead for a moment, start it again."""
        victims = chosen(self.who, troupe.job.nodes, chance)
        for name in victims:
            troupe.kill(name)
        time.sleep(chance.uniform(0.0, LONGEST_ABSENCE) if chance.random() < 0.3 else 0.0)
        for name in victims:
            troupe.restart(name)
        return named(victims)
