"""Rounds under secure aggregation with the real machines of all nodes, driven by hand."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedscale.aggregate import Mean
from fedscale.errors import Cause, Failure, FedscaleError
from fedscale.events import Answered, Assign, Effect, Event, Failed, Fired, Lost, Spoke, Tell, from_row, to_row
from fedscale.learner import Phase
from fedscale.masked import Ground, MaskedSum, filled, roster_of, terms_for
from fedscale.plan import Plan
from fedscale.ring import WORD, Words, add
from fedscale.round import Round, Status, Terms
from fedscale.secagg.node import Node, Reply
from fedscale.secagg.simulate import population
from fedscale.task import layout_for
from fedscale.update import Update
from fedscale.vector import Schema, Tensor

SCHEMA = Schema((Tensor("w", (5,)),))
MODEL = "ab" * 32
STEPS = ("keys", "agreement", "shares", "vector", "consent", "opening")
BROKEN = Failure(Cause.CODE, "ValueError in the app")


def plan_of(**tables: Any) -> Plan:
    """A plan under secure aggregation."""
    fixed = {"job": {"name": "masked"}, "clients": {"min_per_round": 3, "deadline": 60.0, "rejoin": 5.0}, "secagg": {}}
    return Plan.model_validate(fixed | tables)


def names_of(count: int) -> tuple[str, ...]:
    return tuple(f"site-{at}" for at in range(count))


@dataclass
class Circle:
    """One round and its nodes.

    Args:
        names: the cohort.
        plan: the run's plan.
        drops: for each step who answers no more from then on, and the event that tells of it; ``None`` for silence.
        watch: called before each event is handled.
    """

    names: tuple[str, ...]
    plan: Plan = field(default_factory=plan_of)
    drops: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    watch: Callable[[Circle], None] = lambda _: None
    phase: Phase = Phase.TRAIN

    def __post_init__(self) -> None:
        clients = self.plan.clients
        layout = layout_for(self.plan, self.phase, SCHEMA.size, len(self.names))
        quorum = min(clients.min_per_round, len(self.names))
        self.terms = Terms(4, self.phase, self.names, len(self.names), quorum, clients.deadline, clients.rejoin, layout, SCHEMA, MODEL)
        self.sites = population(self.names)
        self.keys = {member.name: member.key.hex() for member in next(iter(self.sites.values())).roster.members}
        self.round = self.fresh()
        self.nodes: dict[str, Node] = {}
        self.events: list[Event] = []
        self.said: deque[Event] = deque()
        self.gone: set[str] = set()
        self.heard: list[Tell] = []
        self.words = {name: self.answer(at + 1) for at, name in enumerate(self.names)}
        self.take(self.round.requests())

    def fresh(self) -> Round:
        """The round before anything has happened."""
        roster = roster_of(self.names, self.keys)
        terms = terms_for(Ground("r1", "code"), self.plan, self.phase, 4, self.terms.layout, SCHEMA, MODEL, roster)
        return Round.begin(self.terms, Mean(), MaskedSum.begin(terms, roster))

    def answer(self, number: int) -> Words:
        """What a node sends in the clear."""
        layout = self.terms.layout
        delta = np.linspace(-number, number / 2, layout.size).astype(np.float32) / np.float32(8)
        return layout.encode(Update(delta, float(number), {m.name: np.full(m.width, number / 4) for m in layout.metrics}))

    def take(self, effects: Sequence[Effect]) -> None:
        """Nodes hear what they are told."""
        for effect in effects:
            if isinstance(effect, Assign):
                for name in effect.tasks.nodes:
                    site = replace(self.sites[name], roster=self.masked.roster)
                    self.nodes.setdefault(name, Node(site, self.masked.server.terms))
            elif isinstance(effect, Tell):
                self.heard.append(effect)
                self.said.extend(self.answers(effect))

    @property
    def masked(self) -> MaskedSum:
        assert self.round.masked is not None
        return self.round.masked

    def answers(self, tell: Tell) -> list[Event]:
        """What happens because a node is told something."""
        step, how = self.drops.get(tell.node, ("", ""))
        if tell.step == step or tell.node in self.gone:
            self.gone.add(tell.node)
            if how == "lost":
                return [Lost(tell.node), Fired(self.round.timer(tell.node))]
            return [Failed(tell.node, BROKEN)] if how == "failed" else []
        try:
            reply = self.nodes[tell.node].handle(tell.data)
            if reply is not None:
                return [spoke(tell, reply)]
            body = self.nodes[tell.node].submit(self.words[tell.node]).body
        except FedscaleError as error:
            return [Failed(tell.node, Failure(Cause.POLICY, str(error)))]
        words = body if isinstance(body, np.ndarray) else np.frombuffer(filled(body or b""), WORD)
        return [Answered(tell.node, f"digest of {tell.node}", words)]

    def send(self, event: Event) -> list[Effect]:
        self.watch(self)
        self.events.append(event)
        effects = self.round.handle(event)
        self.take(effects)
        return effects

    def step(self) -> bool:
        """Handle the next event; a timer fires when nothing else happens. False when the round is over."""
        if self.round.status is not Status.OPEN:
            return False
        masked = self.masked
        timer = self.round.timer() if masked.step == "vector" else f"{self.phase}/4/{masked.step}"
        self.send(self.said.popleft() if self.said else Fired(timer))
        return True

    def play(self, until: str = "") -> Circle:
        """Go on to the end, or to a step."""
        while self.masked.step != (until or "nothing") and self.step():
            pass
        return self

    def sum_of(self, names: Sequence[str]) -> Words:
        """The sum in the clear."""
        total = np.zeros(self.terms.layout.length, WORD)
        for name in names:
            add(total, self.words[name])
        return total

    def replayed(self) -> Round:
        """The round after a crash: everything that was journaled, handled anew."""
        again = self.fresh()
        for event in self.events:
            kind, row = to_row(event)
            revived = from_row(kind, json.loads(json.dumps(row)))
            again.handle(replace(revived, words=event.words) if isinstance(event, Answered) and isinstance(revived, Answered) else revived)
        return again


def spoke(tell: Tell, reply: Reply) -> Spoke:
    return Spoke(tell.node, tell.step, b64encode(reply.message).decode())
