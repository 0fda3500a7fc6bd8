"""The world of a simulated run: it carries out effects and says what happens next, in the order of virtual time.

Without devices time stands still while clients work, so a timer fires only when nothing else can happen, and a deadline
ends a wait exactly where it would in a deployment in which everybody answers at once or never. With devices answers arrive
when a device would have sent them; who comes too late to matter is never trained.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fedscale.errors import RunFailed
from fedscale.events import Answered, Arm, Assign, Effect, Event, Failed, Fired, Gather, Lost, Release, Roster, Spoke, Summed, Tell
from fedscale.record import RoundRecord
from fedscale.run import Run
from fedscale.sampling import derived_seed
from fedscale.task import Tasks, for_first_model
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Answer, Engine
from fedscale_simulations.masks import Circle, Identities
from fedscale_simulations.pace import STEP, Pace
from fedscale_simulations.result import Progress


class World:
    """Clients, timers and virtual time.

    Args:
        run: whose effects these are; only its model and the terms of its round are read.
        engine: does the clients' work.
        pace: who is there, and when answers arrive.
        watch: called when clients are done whose answers come later, in a sum.
        now: the virtual time to begin with, in seconds.
    """

    def __init__(self, run: Run, engine: Engine, pace: Pace, watch: Callable[[Progress], None] = lambda _: None, now: float = 0.0) -> None:
        self.asked = for_first_model(run.plan, ())
        self.now = now
        self._run, self._engine, self._pace, self._watch = run, engine, pace, watch
        self._timers: dict[str, float] = {}
        self._agenda: list[tuple[float, int, Roster | Lost | Fired]] = []
        self._noted = 0
        self._fresh = False
        self._due: dict[str, float] = {}
        self._answers: Iterator[Answer] = iter(())
        self._next: Answer | None = None
        self._done = 0
        self._circle = Circle(run)
        self._said: deque[Spoke | Failed] = deque()

    def monotonic(self) -> float:
        """The virtual time, so that the world can be a clock."""
        return self.now

    def progress(self, closed: RoundRecord | None = None) -> Progress:
        """How far the run is."""
        asked = self.asked
        return Progress(asked.number, self._run.plan.strategy.rounds, str(asked.phase), self._done, len(asked), closed)

    def perform(self, effect: Effect) -> None:
        """Carry out what the run asks for."""
        match effect:
            case Assign(tasks):
                self.asked, self._fresh = tasks, True
            case Gather(at_least):
                # A new step begins: whatever the last one asked and armed is void.
                self._fresh, self._timers, self._agenda, self._due, self._done = False, {}, [], {}, 0
                self._said.clear()
                at = self._pace.enough(at_least, self.now)
                if at is not None:
                    self._note(at, Roster(()))
            case Arm(timer, seconds):
                self._timers[timer] = self.now + math.ceil(seconds / STEP) * STEP
                self._note(self._timers[timer], Fired(timer))
            case Tell():
                # Messages are small: they take no time, and what is said is heard before anything else happens.
                if (said := self._circle.hear(effect)) is not None:
                    self._said.append(said)
            case Release():
                self._answers, self._next = iter(()), None

    def next(self) -> Event:
        """What happens next.

        Raises:
            RunFailed: nothing can happen any more.
        """
        if self._fresh:
            self._fresh = False
            self._begin(self.asked)
        if self._said:
            return self._said.popleft()
        self._next = self._next or next(self._answers, None)
        self._forget()
        if self._next is not None and (not self._agenda or self._arrival(self._next) <= self._agenda[0][0]):
            answer, self._next = self._next, None
            self.now = max(self.now, self._arrival(answer))
            self._done += not isinstance(answer, Summed)
            return self._circle.mask(answer) if isinstance(answer, Answered) and self._masked() else answer
        if not self._agenda:
            raise RunFailed("the simulation waits for something that cannot happen")
        self.now, _, event = heapq.heappop(self._agenda)
        return self._roster() if isinstance(event, Roster) else event

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Vector]]:
        """What goes on between two rounds, as JSON and named vectors: nothing."""
        return {}, {}

    def _masked(self) -> bool:
        """Whether the open round sums under masks."""
        return self._run.round is not None and self._run.round.masked is not None

    def _roster(self) -> Roster:
        """Who is there, for secure aggregation with their keys."""
        names, plan = self._pace.there(self.now), self._run.plan
        return Roster(names, Identities(names, plan.job.seed)) if plan.secagg.enabled else Roster(names)

    def _note(self, at: float, event: Roster | Lost | Fired) -> None:
        """Put an event on the agenda; of two at the same time the one noted first happens first."""
        self._noted += 1
        heapq.heappush(self._agenda, (at, self._noted, event))

    def _forget(self) -> None:
        """Drop timers from the head of the agenda that have been armed anew since."""
        while self._agenda and isinstance(event := self._agenda[0][2], Fired) and self._timers[event.timer] != self._agenda[0][0]:
            heapq.heappop(self._agenda)

    def _begin(self, tasks: Tasks) -> None:
        """Send clients to work: those whose answers arrive in time, in the order in which they do."""
        arrives, lost = self._pace.times(tasks, self.now)
        current = self._run.round
        wanted, deadline = (current.terms.target, current.terms.deadline) if current else (None, math.inf)
        self._due = dict(zip(tasks.nodes, (self.now + arrives).tolist(), strict=True))
        for at in np.flatnonzero(np.isfinite(lost)).tolist():
            self._note(self.now + float(lost[at]), Lost(tasks.nodes[at]))
        order = np.lexsort((_drawn(tasks, self._run.plan.job.seed), arrives))
        timely = np.isfinite(arrives) & (arrives <= deadline)
        coming = [tasks.nodes[at] for at in order[timely[order]].tolist()]
        self._answers = self._engine.work(tasks.to(coming), self._run.model, wanted, self._tick) if coming else iter(())

    def _arrival(self, answer: Answer) -> float:
        """When an answer, or the last of several in a sum, arrives."""
        return max(map(self._due.__getitem__, answer.nodes)) if isinstance(answer, Summed) else self._due[answer.node]

    def _tick(self, clients: int) -> None:
        """So many clients are done."""
        self._done += clients
        self._watch(self.progress())


def _drawn(tasks: Tasks, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Lots for the order of clients that answer at the same time, so that a round that closes early favours nobody."""
    return np.random.Philox(derived_seed(seed, tasks.number, f"order/{tasks.phase}")).random_raw(len(tasks))
