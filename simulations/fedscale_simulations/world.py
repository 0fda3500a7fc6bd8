"""The world of a simulated run: it carries out effects and says what happens next.

Time stands still while clients work; a timer fires only when nothing else can happen, the earliest first. So a deadline
ends a wait exactly where it would in a deployment in which everybody answers at once or never.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedscale.errors import RunFailed
from fedscale.events import Arm, Assign, Effect, Event, Fired, Gather, Release, Roster
from fedscale.record import RoundRecord
from fedscale.run import Run
from fedscale.sampling import derived_seed
from fedscale.task import Task
from fedscale_simulations.engines.sequential import Answer, Engine
from fedscale_simulations.result import Progress


class World:
    """Clients, timers and nothing else.

    Args:
        run: whose effects these are; only its model is read.
        engine: does the clients' work.
        names: the clients, all of them always there.
    """

    def __init__(self, run: Run, engine: Engine, names: tuple[str, ...]) -> None:
        self.asked: dict[str, Task] = {}
        self._run, self._engine, self._names = run, engine, names
        self._now = 0.0
        self._timers: dict[str, float] = {}
        self._roster = False
        self._tasks: list[Task] = []
        self._answers: Iterator[Answer] = iter(())
        self._done = 0

    def progress(self, closed: RoundRecord | None = None) -> Progress:
        """How far the run is."""
        task = next(iter(self.asked.values()))
        return Progress(task.number, self._run.plan.strategy.rounds, str(task.phase), self._done, len(self.asked), closed)

    def perform(self, effect: Effect) -> None:
        """Carry out what the run asks for."""
        match effect:
            case Gather(at_least):
                # A new step begins: whatever the last one asked and armed is void.
                self.asked, self._timers, self._done = {}, {}, 0
                self._roster = len(self._names) >= at_least
            case Arm(timer, seconds):
                self._timers[timer] = self._now + seconds
            case Assign(task):
                self.asked[task.node] = task
                self._tasks.append(task)
            case Release():
                self._answers = iter(())

    def next(self) -> Event:
        """What happens next.

        Raises:
            RunFailed: nothing can happen any more.
        """
        if self._roster:
            self._roster = False
            return Roster(self._names)
        if self._tasks:
            tasks, self._tasks = self._tasks, []
            self._answers = self._engine.work(_shuffled(tasks, self._run.plan.job.seed), self._run.model)
        answer = next(self._answers, None)
        if answer is not None:
            self._done += 1
            return answer
        if not self._timers:
            raise RunFailed("the simulation waits for something that cannot happen")
        timer = min(self._timers, key=self._timers.__getitem__)
        self._now = self._timers.pop(timer)
        return Fired(timer)


def _shuffled(tasks: Sequence[Task], seed: int) -> list[Task]:
    """Tasks in the order in which the clients answer: drawn, so that a round that closes early favours nobody."""
    drawn = np.random.Philox(derived_seed(seed, tasks[0].number, f"order/{tasks[0].phase}")).random_raw(len(tasks))
    return [tasks[at] for at in np.argsort(drawn, kind="stable")]
