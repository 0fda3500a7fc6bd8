"""Round: one broadcast and one sum, as a state machine without clock, socket or thread.

Events go in, effects come out. What may happen to one node of the cohort is the table ``MOVES``; anything that is not
in the table changes nothing. After every event the round looks at its counts and may close:

* as many answers as wanted are in: **closed**;
* nobody is pending any more, or the deadline has passed: **closed** with at least ``quorum`` answers, else **failed**;
* the quorum cannot be reached any more: **failed** at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from fedscale.aggregate import Aggregate, Aggregator, Partial
from fedscale.errors import Cause, Failure
from fedscale.events import Answered, Arm, Assign, Effect, Event, Failed, Fired, Lost, Outcome, Release, Returned, Summed
from fedscale.learner import Phase
from fedscale.metrics import pooled
from fedscale.task import Task
from fedscale.update import Layout
from fedscale.vector import Schema


class Place(StrEnum):
    """Where a node of the cohort stands."""

    ASKED = "asked"
    ANSWERED = "answered"
    LOST = "lost"
    FAILED = "failed"


class Status(StrEnum):
    """Where the round stands."""

    OPEN = "open"
    CLOSED = "closed"
    FAILED = "failed"


PENDING = (Place.ASKED, Place.LOST)

MOVES: dict[tuple[Place, str], Place] = {
    (Place.ASKED, "answered"): Place.ANSWERED,
    (Place.ASKED, "failed"): Place.FAILED,
    (Place.ASKED, "lost"): Place.LOST,
    # An upload may outlive the control stream it was asked for on.
    (Place.LOST, "answered"): Place.ANSWERED,
    (Place.LOST, "failed"): Place.FAILED,
    (Place.LOST, "returned"): Place.ASKED,
    (Place.LOST, "fired"): Place.FAILED,
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a round is about, fixed when it opens.

    Args:
        number: the round.
        phase: ``train`` or ``evaluate``.
        cohort: who is asked.
        target: how many answers close it.
        quorum: fewest answers it may close with.
        deadline: seconds until it closes anyway.
        rejoin: seconds a lost node has to come back.
        layout: how answers are laid out.
        schema: the model's parts.
        model: digest of the global model.
        min_cell: sites with fewer examples show no metrics of their own; 0 shows none at all.
    """

    number: int
    phase: Phase
    cohort: tuple[str, ...]
    target: int
    quorum: int
    deadline: float
    rejoin: float
    layout: Layout
    schema: Schema
    model: str
    min_cell: int = 0


@dataclass(slots=True)
class Round:
    """The state of one round; ``open`` starts it, ``handle`` moves it."""

    terms: Terms
    aggregator: Aggregator
    partial: Partial
    places: dict[str, Place]
    counts: Counter[Place]
    status: Status = Status.OPEN
    failures: dict[str, Failure] = field(default_factory=dict)
    sites: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def begin(cls, terms: Terms, aggregator: Aggregator) -> Round:
        """A round in which everybody has been asked and nobody has answered."""
        places = dict.fromkeys(terms.cohort, Place.ASKED)
        return cls(terms, aggregator, aggregator.zero(terms.layout), places, Counter(places.values()))

    def timer(self, node: str = "") -> str:
        """Name of the deadline's timer, or of the one that waits for a lost node."""
        name = f"{self.terms.phase}/{self.terms.number}"
        return f"{name}/rejoin/{node}" if node else f"{name}/deadline"

    def requests(self) -> list[Effect]:
        """What the round still wants of the world: at the start, and again after a crash."""
        effects: list[Effect] = [Arm(self.timer(), self.terms.deadline)]
        for node, place in self.places.items():
            if place is Place.ASKED:
                effects.append(Assign(self.task(node)))
            elif place is Place.LOST:
                effects.append(Arm(self.timer(node), self.terms.rejoin))
        return effects

    def task(self, node: str) -> Task:
        """What a node is asked."""
        t = self.terms
        return Task(node, t.phase, t.number, t.layout, t.schema, t.model)

    def handle(self, event: Event) -> list[Effect]:
        """Move by one event; events that do not concern an open round change nothing."""
        if self.status is not Status.OPEN:
            return []
        if isinstance(event, Fired) and event.timer == self.timer():
            return [*self._expire(), *self._settle(final=True)]
        if isinstance(event, Summed):
            return self._merge(event)
        node, kind = self._subject(event)
        place = MOVES.get((self.places[node], kind)) if node in self.places else None
        if place is None:
            return []
        self._move(node, place)
        effects = self._note(node, event)
        return effects + self._settle(final=False)

    def _subject(self, event: Event) -> tuple[str, str]:
        """Whom an event concerns and what it is called in ``MOVES``."""
        if isinstance(event, Fired):
            prefix, _, node = event.timer.rpartition("/rejoin/")
            return (node, "fired") if prefix == f"{self.terms.phase}/{self.terms.number}" else ("", "")
        if isinstance(event, Answered) and event.words is None:
            return "", ""
        if isinstance(event, Answered | Failed | Lost | Returned):
            return event.node, type(event).__name__.lower()
        return "", ""

    def _move(self, node: str, place: Place) -> None:
        """Put a node into another place; the counts go along, for counting anew after every answer is quadratic in the cohort."""
        self.counts[self.places[node]] -= 1
        self.counts[place] += 1
        self.places[node] = place

    def _note(self, node: str, event: Event) -> list[Effect]:
        """Keep what an accepted move brings with it."""
        if isinstance(event, Answered) and event.words is not None:
            self.aggregator.add(self.partial, event.words)
            self.failures.pop(node, None)
            self._show(node, event)
        elif isinstance(event, Failed):
            self.failures[node] = event.failure
        elif isinstance(event, Lost):
            self.failures[node] = Failure(Cause.LOST, "the connection to the node broke", hint="it may come back; see the node's own log")
            return [Arm(self.timer(node), self.terms.rejoin)]
        elif isinstance(event, Returned):
            del self.failures[node]
            return [Assign(self.task(node))]
        return []

    def _merge(self, event: Summed) -> list[Effect]:
        """Take several answers at once: all of them or, where one of the nodes cannot answer any more, none."""
        expected = all(MOVES.get((self.places[node], "answered")) if node in self.places else None for node in event.nodes)
        if event.words is None or not expected or len(set(event.nodes)) < len(event.nodes):
            return []
        for node in event.nodes:
            self._move(node, Place.ANSWERED)
            self.failures.pop(node, None)
        self.aggregator.merge(self.partial, Partial(event.words, len(event.nodes)))
        return self._settle(final=False)

    def _show(self, node: str, event: Answered) -> None:
        """Keep a site's own metrics where the plan shows them and the cell is large enough."""
        if self.terms.min_cell and event.words is not None:
            weight, sums = self.terms.layout.tail(event.words)
            if weight >= self.terms.min_cell:
                self.sites[node] = pooled(sums, weight)

    def _expire(self) -> list[Effect]:
        """The deadline: whoever is pending has failed, and need not work on."""
        released = self._released()
        late = Failure(Cause.TIMEOUT, f"no answer within {self.terms.deadline:g} s", hint="raise clients.deadline or ask fewer epochs")
        for node, place in self.places.items():
            if place in PENDING:
                self._move(node, Place.FAILED)
                self.failures.setdefault(node, late)
        return released

    def _released(self) -> list[Effect]:
        """Let go of whoever is still at work."""
        return [Release(n, self.terms.number, self.terms.phase) for n, p in self.places.items() if p in PENDING]

    def _settle(self, *, final: bool) -> list[Effect]:
        """Close or fail where the counts say so, and release whoever is still at work."""
        answered, pending = self.counts[Place.ANSWERED], sum(self.counts[p] for p in PENDING)
        if answered >= self.terms.target or (answered >= self.terms.quorum and (final or not pending)):
            self.status = Status.CLOSED
        elif final or answered + pending < self.terms.quorum:
            self.status = Status.FAILED
        else:
            return []
        return self._released()

    def answered(self) -> tuple[str, ...]:
        """Who is in the sum, sorted."""
        return tuple(sorted(n for n, p in self.places.items() if p is Place.ANSWERED))

    def result(self) -> tuple[Aggregate, Outcome]:
        """The sum and the facts of a closed round."""
        aggregate = self.aggregator.report(self.partial, self.terms.layout)
        metrics = pooled(aggregate.metrics, aggregate.weight)
        outcome = Outcome(
            self.terms.number,
            str(self.terms.phase),
            self.answered(),
            dict(sorted(self.failures.items())),
            metrics,
            dict(sorted(self.sites.items())),
            aggregate.weight,
        )
        return aggregate, outcome

    def reason(self) -> str:
        """Why a failed round failed, in one sentence that names each cause."""
        causes = "; ".join(f"{node}: {failure}" for node, failure in sorted(self.failures.items()))
        counts = f"{len(self.answered())} of {len(self.places)} nodes answered, {self.terms.quorum} are needed"
        return f"round {self.terms.number} ({self.terms.phase}): {counts}" + (f": {causes}" if causes else "")
