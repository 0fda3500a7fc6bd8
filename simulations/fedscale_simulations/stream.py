"""The world of an asynchronous run (FedBuff): clients come and go on their own time, a full buffer is a round.

So many clients are at work at any time, each on the model there was when it was asked. When ``buffer`` of them have
answered, the run is told that exactly these are there; it opens a round, asks them, and gets at once what they have already
sent, each change scaled by ``(1 + staleness) ** -exponent``. The run is the one that everybody drives: asynchrony is a
property of the world. Evaluation is done by an observer and takes no time.

Source: Nguyen et al. 2022, arXiv:2106.06639, algorithm 1 and section 5.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedscale.errors import Cause, Failure, RunFailed
from fedscale.events import Answered, Arm, Assign, Effect, Event, Failed, Fired, Gather, Release, Roster, Summed
from fedscale.learner import Phase
from fedscale.names import Names
from fedscale.record import RoundRecord
from fedscale.ring import Words
from fedscale.run import Run
from fedscale.sampling import derived_seed
from fedscale.task import Tasks, for_first_model, layout_for
from fedscale.update import Layout, Update
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Answer, Desk, Engine
from fedscale_simulations.pace import LOOKS_AHEAD, Pace
from fedscale_simulations.result import Progress

# When it ends, which draw it was, who it is, which version of the model it works on, and whether it is lost then.
Flight: TypeAlias = tuple[float, int, str, int, bool]

MODEL = "model/"
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Held:
    """An answer that waits in the buffer.

    Args:
        words: as the client sent it.
        layout: how it is laid out.
        discount: what its change still counts for.
    """

    words: Words
    layout: Layout
    discount: float

    def laid_out(self, node: str, layout: Layout) -> Answered:
        """The discounted answer in the layout of a round."""
        weight, sums = self.layout.tail(self.words)
        delta = self.layout.mean(self.words, weight) * np.float32(self.discount)
        return Answered(node, "", layout.encode(Update(delta, weight, sums)))


class Stream:
    """Clients at work, and a buffer of what they have sent.

    Args:
        run: whose effects these are; its plan says how many are at work, its strategy how large the buffer is.
        desk: does the clients' training, one by one, for each works on the model of its own time.
        engine: does what all do on one model: the making of the first one, and evaluation.
        pace: who is there, and how long a client takes.
        watch: called when a client is done whose answer waits in the buffer.
        now: the virtual time to begin with, in seconds.
    """

    def __init__(self, run: Run, desk: Desk, engine: Engine, pace: Pace, watch: Callable[[Progress], None], now: float) -> None:
        self.asked = for_first_model(run.plan, ())
        self.now = now
        self._run, self._desk, self._engine, self._pace, self._watch = run, desk, engine, pace, watch
        self._flights: list[Flight] = []
        self._models: dict[int, Vector] = {}
        self._draws = 0
        self._buffer: dict[str, Held | Failed] = {}
        self._fresh = False
        self._answers: Iterator[Answer] = iter(())
        self._gathers, self._timers = 0, dict[str, float]()
        self._step, self._done = (0, ""), 0
        self._looked: tuple[float, Names] | None = None

    def monotonic(self) -> float:
        """The virtual time, so that the world can be a clock."""
        return self.now

    def progress(self, closed: RoundRecord | None = None) -> Progress:
        """How far the run is."""
        number, phase = self._step
        asked = len(self.asked) or self._run.strategy.buffer
        return Progress(number, self._run.plan.strategy.rounds, phase, min(self._done, asked), asked, closed)

    def perform(self, effect: Effect) -> None:
        """Carry out what the run asks for; it never troubles clients at work."""
        match effect:
            case Gather(at_least):
                self.asked, self._gathers, self._timers, self._done = self.asked.to(()), at_least, {}, 0
                self._step = self._run.number, str(self._run.phase)
            case Arm(timer, seconds):
                self._timers[timer] = self.now + seconds
            case Assign(tasks):
                self.asked, self._fresh = tasks, True
            case Release():
                self._answers = iter(())

    def next(self) -> Event:
        """What happens next.

        Raises:
            RunFailed: nothing can happen any more.
        """
        if self._fresh:
            self._fresh = False
            self._answers = self._work(self.asked)
        answer = next(self._answers, None)
        if answer is not None:
            self._done += self._run.phase is not Phase.TRAIN and not isinstance(answer, Summed)
            return answer
        if self._gathers:
            at_least, self._gathers = self._gathers, 0
            if (roster := self._roster(at_least)) is not None:
                return roster
        if not self._timers:
            raise RunFailed("the simulation waits for something that cannot happen")
        timer = min(self._timers, key=self._timers.__getitem__)
        self.now = max(self.now, self._timers.pop(timer))
        return Fired(timer)

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Vector]]:
        """Who is at work on what, between two rounds, as JSON and named vectors."""
        return {"flights": self._flights, "draws": self._draws}, {f"{MODEL}{version}": model for version, model in self._models.items()}

    def restore(self, facts: Mapping[str, Any], vectors: Mapping[str, Vector]) -> None:
        """Go on from where ``snapshot`` was taken."""
        self._draws = facts["draws"]
        self._flights = [(due, draw, node, version, lost) for due, draw, node, version, lost in facts["flights"]]
        self._models = {int(name.removeprefix(MODEL)): vector for name, vector in vectors.items()}

    def _roster(self, at_least: int) -> Roster | None:
        """Who is there for the next step: for training those whose answers wait; ``None`` when there never are enough."""
        if self._run.phase is Phase.TRAIN:
            self._fill()
            return Roster(tuple(self._buffer))
        at = self._pace.enough(at_least, self.now)
        if at is None:
            return None
        self.now = at
        return Roster(self._pace.there(at))

    def _work(self, tasks: Tasks) -> Iterator[Answer]:
        """Answers to what the run asks: from the buffer where it trains."""
        if tasks.phase is Phase.TRAIN:
            held, self._buffer = self._buffer, {}
            return (kept if isinstance(kept := held[task.node], Failed) else kept.laid_out(task.node, task.layout) for task in tasks)
        wanted = self._run.round.terms.target if self._run.round else None
        return self._engine.work(tasks, self._run.model, wanted, self._tick)

    def _fill(self) -> None:
        """Let time pass until enough have answered.

        Raises:
            RunFailed: they do not within a day.
        """
        limit = self.now + DAY
        while self._done < self._run.strategy.buffer:
            self._send_out()
            if not self._flights or self._flights[0][0] > limit:
                raise RunFailed("the buffer was not filled within a day of virtual time", hint="lower strategy.buffer, or raise clients.select")
            flight = heapq.heappop(self._flights)
            self.now = max(self.now, flight[0])
            self._buffer[flight[2]] = kept = self._arrived(flight)
            if isinstance(kept, Held):
                self._tick(1)

    def _send_out(self) -> None:
        """Ask clients until as many are at work as the plan wants; who waits in the buffer is not asked again."""
        there = self._there()
        busy = {flight[2] for flight in self._flights} | set(self._buffer)
        wanted, _ = self._run.plan.clients.asked(len(there))
        number, free = self._run.number, len(there) - sum(node in there for node in busy)
        for _ in range(min(wanted - len(self._flights), free)):
            node = self._drawn(there, busy)
            busy.add(node)
            arrives, lost = (float(times[0]) for times in self._pace.times(self._tasks((node,), number), self.now))
            heapq.heappush(self._flights, (self.now + min(arrives, lost), self._draws, node, number, lost < arrives))
        at_work = {flight[3] for flight in self._flights}
        known = self._models if self._run.model is None else {**self._models, number: self._run.model}
        self._models = {version: model for version, model in known.items() if version in at_work}

    def _there(self) -> Names:
        """Who is there, looked up every few minutes of virtual time."""
        looked = self.now - self.now % LOOKS_AHEAD
        if self._looked is None or self._looked[0] != looked:
            self._looked = looked, self._pace.there(looked)
        return self._looked[1]

    def _drawn(self, there: Names, busy: set[str]) -> str:
        """The next client, uniformly among those that are there and not busy."""
        while True:
            self._draws += 1
            node = there[derived_seed(self._run.plan.job.seed, self._draws, "draw") % len(there)]
            if node not in busy:
                return node

    def _tasks(self, nodes: Sequence[str], version: int) -> Tasks:
        """What clients at work were asked."""
        plan, schema = self._run.plan, self._run.schema
        return Tasks(nodes, Phase.TRAIN, version, layout_for(plan, Phase.TRAIN, schema.size if schema else 0, 1), schema, "")

    def _arrived(self, flight: Flight) -> Held | Failed:
        """What a client sends in the end."""
        _, _, node, version, lost = flight
        if lost:
            return Failed(node, Failure(Cause.LOST, "the device dropped out"))
        task = self._tasks((node,), version).task(node)
        answer = self._desk.answer(task, self._models[version])
        if not isinstance(answer, Answered) or answer.words is None:
            return answer if isinstance(answer, Failed) else Failed(node, Failure(Cause.CODE, "the client did not train"))
        staleness = self._run.number - version
        return Held(answer.words[:], task.layout, (1 + staleness) ** -self._run.strategy.staleness)

    def _tick(self, clients: int) -> None:
        """So many clients are done."""
        self._done += clients
        self._watch(self.progress())
