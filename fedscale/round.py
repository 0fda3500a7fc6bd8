"""Round: one broadcast and one sum, as a state machine without clock, socket or thread.

Events go in, effects come out. What may happen to one node of the cohort is the table ``MOVES``; anything that is not
in the table changes nothing. After every event the round looks at its counts and may close:

* as many answers as wanted are in: **closed**;
* nobody is pending any more, or the deadline has passed: **closed** with at least ``quorum`` answers, else **failed**;
* the quorum cannot be reached any more: **failed** at once.

Under secure aggregation the cohort also exchanges messages, step by step, while it works. Where the counts would close a
plain round, the vectors are in and the sum remains to be opened; the round closes with the opened sum.
"""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fedscale.aggregate import Aggregate, Aggregator, Partial
from fedscale.causes import GONE, listed
from fedscale.errors import Cause, Failure, FedscaleError
from fedscale.events import Answered, Arm, Assign, Effect, Event, Failed, Fired, Lost, Outcome, Release, Returned, Spoke, Summed, Tell
from fedscale.learner import Phase
from fedscale.masked import VECTOR, MaskedSum
from fedscale.metrics import pooled
from fedscale.ring import Pieces
from fedscale.task import Tasks
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
# A message takes a moment, whatever the work takes; a quarter of the deadline leaves room for all steps before the vectors.
PATIENCE, SHARE = 30.0, 0.25

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
        min_cell: sites with fewer examples show no metrics of their own, and with them the next one where a subtraction would; 0 shows none at all.
        least: a sum of less weight than this shows neither its metrics nor its weight.
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
    least: float = 0.0


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
    sites: dict[str, tuple[float, dict[str, float]]] = field(default_factory=dict)
    masked: MaskedSum | None = None
    fault: str = ""

    @classmethod
    def begin(cls, terms: Terms, aggregator: Aggregator, masked: MaskedSum | None = None) -> Round:
        """A round in which everybody has been asked and nobody has answered; under secure aggregation with its ``masked`` sum."""
        places = dict.fromkeys(terms.cohort, Place.ASKED)
        return cls(terms, aggregator, aggregator.zero(terms.layout), places, Counter(places.values()), masked=masked)

    def timer(self, node: str = "") -> str:
        """Name of the deadline's timer, or of the one that waits for a lost node."""
        name = f"{self.terms.phase}/{self.terms.number}"
        return f"{name}/rejoin/{node}" if node else f"{name}/deadline"

    @property
    def late(self) -> bool:
        """Whether the vectors are in and only a masked sum is to be opened."""
        return self.masked is not None and self.masked.late

    def wants(self, node: str) -> bool:
        """Whether a node's vector is waited for and may come now."""
        return self.places.get(node) in PENDING and (self.masked is None or (self.masked.step == VECTOR and node in self.masked.waiting))

    def owes(self, node: str) -> bool:
        """Whether a node has anything to do yet: its vector, or its part in opening the sum."""
        return node in self.masked.waiting if self.masked is not None and self.late else self.places.get(node) in PENDING

    def hears(self, node: str, step: str) -> bool:
        """Whether a message of secure aggregation is due from a node."""
        return self.masked is not None and step == self.masked.step != VECTOR and node in self.masked.waiting

    def gone(self, node: str) -> bool:
        """Whether a node that owes something is known to be away."""
        return self.places.get(node) is Place.LOST or (self.masked is not None and node in self.masked.away)

    def requests(self) -> list[Effect]:
        """What the round still wants of the world: at the start, and again after a crash."""
        plain = self.masked is None
        away = [n for n, place in self.places.items() if not (plain and place is Place.ASKED) and self.owes(n) and self.gone(n)]
        limits: list[Effect] = [] if self.late else [Arm(self.timer(), self.terms.deadline)]
        limits += [Arm(self.timer(node), self.terms.rejoin) for node in away]
        return [*limits, *self._assigned([node for node, place in self.places.items() if place is Place.ASKED]), *self._tells()]

    def requests_of(self, node: str) -> list[Effect]:
        """What the round wants of one node, told again to one that may have missed it."""
        tells = [effect for effect in self._tells() if isinstance(effect, Tell) and effect.node == node]
        return [*self._assigned([node] if self.places.get(node) is Place.ASKED else []), *tells]

    def tasks(self, nodes: Sequence[str]) -> Tasks:
        """What nodes are asked."""
        t = self.terms
        return Tasks(nodes, t.phase, t.number, t.layout, t.schema, t.model)

    def _assigned(self, nodes: Sequence[str]) -> list[Effect]:
        """Have nodes asked, unless the vectors are in."""
        return [Assign(self.tasks(nodes))] if nodes and not self.late else []

    def handle(self, event: Event) -> list[Effect]:
        """Move by one event; events that do not concern an open round change nothing."""
        if self.status is not Status.OPEN:
            return []
        if isinstance(event, Fired) and event.timer == self.timer():
            return [] if self.late else [*self._expire(), *self._settle(final=True)]
        if isinstance(event, Summed):
            return self._merge(event)
        return self._place(event) if self.masked is None else self._under_masks(self.masked, event)

    def _place(self, event: Event) -> list[Effect]:
        """Move one node by the table."""
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
            self.failures.pop(node, None)
            if self.masked is not None:
                self._take(self.masked, node, event.words)
            else:
                self.aggregator.add(self.partial, event.words)
                self._show(node, event)
        elif isinstance(event, Failed):
            self.failures[node] = event.failure
        elif isinstance(event, Lost):
            self.failures[node] = GONE
            return [Arm(self.timer(node), self.terms.rejoin)]
        elif isinstance(event, Returned):
            del self.failures[node]
            return self.requests_of(node)
        if self.masked is not None and self.places[node] is Place.FAILED:
            self.masked.drop(node)
        return []

    def _merge(self, event: Summed) -> list[Effect]:
        """Take several answers at once: all of them or, where one of the nodes cannot answer any more, none."""
        found, nodes = list(map(self.places.get, event.nodes)), set(event.nodes)
        ready = Counter({place: found.count(place) for place in PENDING})
        if event.words is None or self.masked is not None or ready.total() < len(found) or len(nodes) < len(found):
            return []
        self.counts -= ready
        self.counts[Place.ANSWERED] += len(event.nodes)
        self.places.update(dict.fromkeys(event.nodes, Place.ANSWERED))
        for node in self.failures.keys() & nodes:
            del self.failures[node]
        self.aggregator.merge(self.partial, Partial(event.words, len(event.nodes)))
        return self._settle(final=False)

    def _show(self, node: str, event: Answered) -> None:
        """Keep a site's own metrics where the plan shows them and the cell is large enough."""
        if self.terms.min_cell and event.words is not None:
            weight, sums = self.terms.layout.tail(event.words)
            if weight >= self.terms.min_cell:
                self.sites[node] = weight, pooled(sums, weight)

    def _shown(self, weight: float) -> dict[str, dict[str, float]]:
        """The sites' own metrics, in a round of that weight.

        Where the others come to less than a cell, what all come to less those that are shown would tell of them: the lightest one is hidden too.
        """
        hidden = round(weight - sum(own for own, _ in self.sites.values()), 3)  # each was rounded on its way
        besides = {min(self.sites, key=lambda node: (self.sites[node][0], node))} if self.sites and 0 < hidden < self.terms.min_cell else set()
        return {node: metrics for node, (_, metrics) in sorted(self.sites.items()) if node not in besides}

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
        if self.masked is not None and self.masked.step != VECTOR and answered + pending >= self.terms.quorum:
            return [] if self.masked.waiting else self._next_step(self.masked)
        if answered >= self.terms.target or (answered >= self.terms.quorum and (final or not pending)):
            if self.masked is not None:
                return [*self._released(), *self._next_step(self.masked)]
            self.status = Status.CLOSED
        elif final or answered + pending < self.terms.quorum:
            self.status = Status.FAILED
        else:
            return []
        return self._released()

    # ------------------------------------------------------------------------------------------ under secure aggregation

    def _under_masks(self, masked: MaskedSum, event: Event) -> list[Effect]:
        """Move by an event of one node or of one step of the protocol."""
        if isinstance(event, Fired) and event.timer == self._step_timer(masked):
            return self._hurry(masked)
        if isinstance(event, Spoke):
            return self._hear(masked, event)
        if self.late:
            return self._help(masked, event)
        return [] if isinstance(event, Answered) and not self.wants(event.node) else self._place(event)

    def _step_timer(self, masked: MaskedSum) -> str:
        """Name of the timer that limits a step of the protocol."""
        return f"{self.terms.phase}/{self.terms.number}/{masked.step}"

    def _tells(self) -> list[Effect]:
        """The messages of this step whose answers are due, and how long they are waited for; vectors have the round's deadline."""
        masked = self.masked
        if masked is None:
            return []
        number, phase, step = self.terms.number, self.terms.phase, masked.step
        tells = [Tell(n, number, phase, step, data) for n, data in masked.outbox.items() if n in masked.waiting and not self.gone(n)]
        limit = [Arm(self._step_timer(masked), min(PATIENCE, SHARE * self.terms.deadline))] if step != VECTOR else []
        return [*limit, *tells]

    def _hear(self, masked: MaskedSum, event: Spoke) -> list[Effect]:
        """Take a message; a node whose message is not sound takes no further part."""
        if not self.hears(event.node, event.step):
            return []
        try:
            masked.hear(event.node, b64decode(event.data))
        except (FedscaleError, ValueError) as error:
            self._exclude(event.node, Failure(Cause.REJECTED, str(error), hint="the node and the coordinator may run different releases"))
        return self._go_on(masked)

    def _take(self, masked: MaskedSum, node: str, words: Pieces) -> None:
        """Take a masked vector; its size was checked before it was stored, so only another release can get it wrong."""
        try:
            masked.add(node, words)
        except FedscaleError as error:
            self._exclude(node, Failure(Cause.REJECTED, str(error)))

    def _help(self, masked: MaskedSum, event: Event) -> list[Effect]:
        """What happens to a node whose vector is in the sum while the sum is opened; without it the others may suffice."""
        node, kind = self._subject(event)
        if node not in masked.waiting:
            return []
        if kind == "lost":
            masked.away.add(node)
            return [Arm(self.timer(node), self.terms.rejoin)]
        if kind == "returned":
            masked.away.discard(node)
            return self.requests_of(node)
        if isinstance(event, Failed):
            self.failures[node] = event.failure
        elif kind != "fired" or node not in masked.away:
            return []
        masked.drop(node)
        return self._go_on(masked)

    def _hurry(self, masked: MaskedSum) -> list[Effect]:
        """Go on without those who have said nothing at this step."""
        silent = Failure(Cause.TIMEOUT, f"no message at the step '{masked.step}' of secure aggregation", hint="see the node's own log")
        for node in sorted(masked.waiting):
            self._exclude(node, silent)
        return self._go_on(masked)

    def _exclude(self, node: str, failure: Failure) -> None:
        """A node takes no further part; a vector of it that is in the sum stays there."""
        if self.masked is not None:
            self.masked.drop(node)
        if not self.late:
            self._move(node, Place.FAILED)
        self.failures[node] = failure

    def _go_on(self, masked: MaskedSum) -> list[Effect]:
        """Look whether the step is over."""
        if not self.late:
            return self._settle(final=False)
        return [] if masked.waiting else self._next_step(masked)

    def _next_step(self, masked: MaskedSum) -> list[Effect]:
        """Close the step; in the end the opened sum is the sum of the round, or the round fails and nothing was opened."""
        try:
            masked.close()
            if masked.outcome is not None:
                survivors = len(masked.outcome.survivors)
                self.terms.layout.check_sum(masked.outcome.words, survivors)
                self.aggregator.merge(self.partial, Partial(masked.outcome.words, survivors))
                self.status = Status.CLOSED
                return []
        except FedscaleError as error:
            self.status, self.fault = Status.FAILED, str(error)
            return self._released()
        if not self.late:
            left_out = Failure(
                Cause.REJECTED, "it does not agree with the others about their masks", hint="one of them runs another release, or lies"
            )
            for node in [n for n, place in self.places.items() if place in PENDING and n not in masked.outbox]:
                self._exclude(node, left_out)
        return self._tells() if masked.waiting else self._go_on(masked)

    def answered(self) -> tuple[str, ...]:
        """Who is in the sum, sorted."""
        return tuple(sorted(n for n, p in self.places.items() if p is Place.ANSWERED))

    def result(self) -> tuple[Aggregate, Outcome]:
        """The sum and the facts of a closed round."""
        aggregate = self.aggregator.report(self.partial, self.terms.layout)
        # What people read, here and in every copy of it; the model takes what the sum says.
        told = aggregate.weight >= self.terms.least
        outcome = Outcome(
            self.terms.number,
            str(self.terms.phase),
            self.answered(),
            {node: failure for node, failure in sorted(self.failures.items()) if self.places[node] is not Place.ANSWERED},
            pooled(aggregate.metrics, aggregate.weight) if told else {},
            self._shown(aggregate.weight),
            aggregate.weight if told else 0.0,
        )
        return aggregate, outcome

    def missed(self) -> Outcome:
        """The facts of a failed round: who failed, and no answer that counts."""
        return Outcome(self.terms.number, str(self.terms.phase), (), dict(sorted(self.failures.items())), {}, {}, 0.0)

    def reason(self) -> str:
        """Why a failed round failed, in one sentence that names each cause."""
        causes = listed(self.failures)
        counts = self.fault or f"{len(self.answered())} of {len(self.places)} nodes answered, {self.terms.quorum} are needed"
        return f"round {self.terms.number} ({self.terms.phase}): {counts}" + (f": {causes}" if causes else "")
