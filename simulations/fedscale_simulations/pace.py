"""When the answers of virtual clients arrive: at once in a drawn order, or as their devices would have it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedscale.learner import Phase
from fedscale.names import Names
from fedscale.plan import Plan
from fedscale.sampling import derived_seed
from fedscale.task import Tasks
from fedscale_simulations.census import Census
from fedscale_simulations.devices import HOUR, HOURS, Devices, Fleet

Seconds = npt.NDArray[np.float64]

# Virtual time goes in steps of 2**-10 s: such numbers add up without rounding, so a resumed run tells the time it would have told.
STEP = 2.0**-10
LOOKS_AHEAD = 300.0
FORWARD_SHARE = 1 / 3


class Pace(Protocol):
    """Decides who is there and when answers arrive."""

    def there(self, now: float) -> Names:
        """The clients that are there."""

    def enough(self, count: int, now: float) -> float | None:
        """The first time from now on at which so many clients are there; ``None`` when there never are."""

    def times(self, tasks: Tasks, now: float) -> tuple[Seconds, Seconds]:
        """When each answer arrives and when each client is lost, in seconds from now; infinite for what does not happen."""


@dataclass(frozen=True)
class Still:
    """Everybody is there and answers at once; time stands still while clients work."""

    names: Names

    def there(self, now: float) -> Names:  # noqa: ARG002 - a pace
        """All clients."""
        return self.names

    def enough(self, count: int, now: float) -> float | None:
        """Now or never."""
        return now if len(self.names) >= count else None

    def times(self, tasks: Tasks, now: float) -> tuple[Seconds, Seconds]:  # noqa: ARG002 - a pace
        """All at once, nobody is lost."""
        return np.zeros(len(tasks)), np.full(len(tasks), math.inf)


@dataclass(frozen=True)
class Paced:
    """As the clients' devices have it.

    Args:
        names: the clients; a client's device is at its position.
        fleet: the devices.
        plan: what they do.
        rows: the number of examples of a client.
        start: hour of the day at which the run begins.
        observer: whether somebody else evaluates, which takes no time.
    """

    names: Names
    fleet: Fleet
    plan: Plan
    rows: Callable[[str], int]
    start: float = 0.0
    observer: bool = False

    def there(self, now: float) -> Names:
        """The clients whose devices are there."""
        return self.names.subset(self.fleet.there(self._hour(now)))

    def enough(self, count: int, now: float) -> float | None:
        """The first look within a day at which so many are there."""
        looks = (now + LOOKS_AHEAD * at for at in range(int(HOURS * HOUR / LOOKS_AHEAD)))
        return next((at for at in looks if self.fleet.there(self._hour(at)).size >= count), None)

    def times(self, tasks: Tasks, now: float) -> tuple[Seconds, Seconds]:
        """Download, work and upload of each device; one that drops out or leaves before is lost then."""
        if self.observer and tasks.phase is Phase.EVALUATE:
            return np.zeros(len(tasks)), np.full(len(tasks), math.inf)
        who = np.array([self.names.index(node) for node in tasks.nodes])
        down = 4.0 * tasks.schema.size if tasks.schema else 0.0
        up = float(tasks.layout.nbytes)
        work = np.array([self.work(node, tasks.phase) for node in tasks.nodes])
        fleet = self.fleet
        takes = down / fleet.down[who] + work / fleet.speed[who] + up / fleet.up[who]
        bits = np.random.Philox(derived_seed(self.plan.job.seed, tasks.number, f"dropout/{tasks.phase}/{tasks.nodes[0]}"))
        chance, moment = bits.random_raw(2 * len(tasks)).reshape(2, -1) / 2.0**64
        lost = np.where(chance < fleet.dropout[who], takes * moment, math.inf)
        lost = np.minimum(lost, np.maximum(fleet.leave(who, self._hour(now)), 0.0))
        arrives = np.where(lost < takes, math.inf, takes)
        return _stepped(arrives), _stepped(np.where(lost < takes, lost, math.inf))

    def work(self, node: str, phase: Phase) -> float:
        """The work of a client in a phase in examples trained; evaluating one is a third of training it."""
        plan, rows = self.plan, self.rows(node)
        held = rows * plan.evaluate.holdout
        if phase is Phase.EVALUATE:
            return (held or rows) * FORWARD_SHARE
        if phase is Phase.INIT:
            return 0.0
        examples = (rows - held) * plan.train.epochs
        return min(examples, (plan.train.max_steps or math.inf) * plan.train.batch_size)

    def _hour(self, now: float) -> float:
        return self.start + now / HOUR


def _stepped(seconds: Seconds) -> Seconds:
    """Rounded up to whole steps of virtual time."""
    return np.ceil(seconds / STEP) * STEP


def paced(devices: Devices, census: Census, plan: Plan) -> Paced:
    """The pace of so many devices as there are clients.

    Raises:
        DataError: a file of devices cannot be read.
    """
    return Paced(census.names, devices.fleet(len(census.names), plan.job.seed), plan, census.rows, devices.start, devices.observer)
