"""Anything may happen to a run, in any order, with crashes in between; a one-hot oracle sees who is in each sum."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from fedscale.errors import Cause
from fedscale.events import Answered, Event, Failed, Fired, Lost, Outcome, Pause, Resume, Returned, Roster, Stop
from fedscale.learner import Phase
from fedscale.ring import Words
from fedscale.round import Place
from fedscale.run import Run
from fedscale.vector import Schema, Tensor, Vector
from tests.fedscale.world import BROKEN, NODES, World, bits, plan_of, vector

WEIGHT = 8.0
STRANGER = "zoe"
ONE_EACH = Schema((Tensor("w", (len(NODES),)),))
nodes = st.sampled_from(NODES)
groups = st.lists(nodes, min_size=1, max_size=6)


def one_hot(node: str) -> Vector:
    """A change in which a node lights its own coordinate and no other."""
    return vector(*(float(other == node) for other in NODES))


class Anything(RuleBasedStateMachine):
    """Events of every kind, sensible or not, against the run's promises."""

    def __init__(self) -> None:
        super().__init__()
        self.honest: set[str] = set()
        self.failed: set[str] = set()
        self.at: tuple[str, int] = ("", 0)
        self.ended: dict[str, Any] | None = None
        self.timers: list[str] = []
        self.sent: list[Answered] = []

    @initialize(
        select=st.sampled_from(["all", 2, 3, 0.5]),
        over=st.sampled_from([1.0, 1.5, 4.0]),
        quorum=st.integers(1, 2),
        rounds=st.integers(1, 3),
        every=st.integers(0, 2),
        strategy=st.sampled_from(["fedavg", "fedavgm", "fedadam"]),
        warm=st.booleans(),
    )
    def setup(self, select: Any, over: float, quorum: int, rounds: int, every: int, strategy: str, warm: bool) -> None:
        plan = plan_of(
            clients={"select": select, "over_select": over, "min_per_round": quorum},
            strategy={"name": strategy, "rounds": rounds},
            evaluate={"every": every, "min_cell": 1},
            aggregate={"bound": 8, "weight_cap": 64},
        )
        self.world = World(plan, schema=ONE_EACH)
        self.timers = list(self.world.timers)
        if warm:
            self.world.start()

    @property
    def run(self) -> Run:
        return self.world.run

    def send(self, event: Event) -> None:
        """Send an event and keep the book of what an honest world knows."""
        current = self.run.round
        if current is not None and self.at != (str(current.terms.phase), current.terms.number):
            self.at, self.honest, self.failed = (str(current.terms.phase), current.terms.number), set(), set()
        if current is not None and isinstance(event, Answered) and event.node not in self.failed:
            self.honest |= {event.node}
        if current is not None and isinstance(event, Failed) and event.node not in self.honest:
            self.failed |= {event.node}
        self.world.send(event)
        self.timers += self.world.timers
        for outcome in self.world.outcomes:
            if outcome is not None:
                self.closed(outcome)

    def closed(self, outcome: Outcome) -> None:
        assert (outcome.phase, outcome.number) == self.at
        assert set(outcome.answered) <= self.honest
        assert set(outcome.answered).isdisjoint(outcome.failures)
        assert outcome.weight == WEIGHT * len(outcome.answered)
        assert outcome.metrics == {"loss": 0.5}
        assert len(outcome.answered) >= self.world.plan.clients.min_per_round

    def sound(self, node: str) -> Words:
        train = self.run.phase is Phase.TRAIN
        return self.world.words(one_hot(node) if train else 0.0, WEIGHT, loss=WEIGHT / 2)

    @rule(who=groups)
    def gather(self, who: list[str]) -> None:
        self.send(Roster(tuple(who)))

    @rule(steps=st.integers(1, 5), absent=st.sets(nodes, max_size=2))
    def what_comes_next(self, steps: int, absent: set[str]) -> None:
        for _ in range(steps):
            if self.run.round is not None:
                self.answer([node for node, place in self.run.round.places.items() if place is Place.ASKED and node not in absent])
            elif self.run.asked:
                self.world.initialize()
                self.timers += self.world.timers
            else:
                self.send(Roster(NODES))

    @precondition(lambda self: self.run.round)
    @rule(who=st.lists(st.sampled_from((*NODES, STRANGER)), min_size=1, max_size=4))
    def answer(self, who: list[str]) -> None:
        for node in who:
            if self.run.round is not None:
                self.sent.append(Answered(node, f"{len(self.world.rows)}", self.sound(node)))
                self.send(self.sent[-1])

    @precondition(lambda self: self.run.round)
    @rule(node=nodes)
    def answer_without_words(self, node: str) -> None:
        before = bits(self.run)
        assert self.run.handle(Answered(node, "never stored")) == []
        assert bits(self.run) == before

    def of_another_phase(self) -> list[Words]:
        length = self.world.round.terms.layout.length
        return [answer.words[:] for answer in self.sent if answer.words is not None and answer.words.size != length]

    @precondition(lambda self: self.run.round and self.of_another_phase())
    @rule(node=nodes)
    def answer_of_another_phase(self, node: str) -> None:
        stale = self.of_another_phase()[-1]
        if node not in self.honest or self.at != (str(self.run.phase), self.run.number):
            self.failed |= {node}
        self.world.submit(node, stale)
        if self.run.round is not None and node in self.run.round.places and self.run.round.places[node] is Place.FAILED:
            assert self.run.round.failures[node].cause in {Cause.REJECTED, Cause.CODE, Cause.LOST}

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        again = data.draw(st.sampled_from(self.sent[-3:]))
        current = self.run.round
        fits = current is not None and again.words is not None and again.words.size == current.terms.layout.length
        if current is None or (fits and current.places.get(again.node) is Place.ANSWERED):
            before = bits(self.run)
            assert self.run.handle(again) == []
            assert bits(self.run) == before

    @rule(node=nodes, kind=st.sampled_from([Lost, Returned]))
    def come_and_go(self, node: str, kind: Any) -> None:
        self.send(kind(node))

    @rule(node=nodes)
    def fail(self, node: str) -> None:
        self.send(Failed(node, BROKEN))

    @precondition(lambda self: self.timers and (self.run.round or self.run.asked or len(self.world.rows) > 25))
    @rule(data=st.data(), newest=st.booleans())
    def fire(self, data: st.DataObject, newest: bool) -> None:
        timer = self.timers[-1] if newest else data.draw(st.sampled_from(sorted(set(self.timers))))
        self.send(Fired(timer))

    @rule(event=st.sampled_from([Pause(), Resume(), Resume()]))
    def steer(self, event: Event) -> None:
        self.send(event)

    @precondition(lambda self: len(self.world.rows) > 25)
    @rule()
    def stop(self) -> None:
        self.send(Stop("enough"))
        assert self.run.status != "running"

    @rule()
    def crash_and_replay(self) -> None:
        before = bits(self.run)
        self.world = self.world.crash()
        assert bits(self.run) == before

    @invariant()
    def a_sum_holds_each_answer_once(self) -> None:
        current = self.run.round
        if current is None:
            return
        layout, answered = current.terms.layout, current.answered()
        weight, _ = layout.tail(current.partial.words)
        assert (current.partial.count, weight) == (len(answered), WEIGHT * len(answered))
        if current.terms.phase is Phase.TRAIN:
            lit = layout.format.decode(current.partial.words[: layout.size], WEIGHT / layout.weight_cap)
            assert lit.tolist() == [float(node in answered) for node in NODES]
        assert set(answered) <= self.honest or self.at != (str(current.terms.phase), current.terms.number)
        assert set(current.failures) == {n for n, place in current.places.items() if place in {Place.FAILED, Place.LOST}}

    @invariant()
    def a_finished_run_never_moves(self) -> None:
        if self.ended is None and self.run.status != "running":
            self.ended = bits(self.run)
            assert self.run.reason or self.run.status == "completed"
        assert self.ended is None or bits(self.run) == self.ended

    @invariant()
    def a_plain_mean_lights_what_the_outcomes_say(self) -> None:
        if self.world.plan.strategy.name != "fedavg" or self.run.model is None:
            return
        trained = [outcome.answered for outcome in self.run.history if outcome.phase == "train"]
        wanted = [sum(1 / len(answered) for answered in trained if node in answered) for node in NODES]
        assert self.run.model == pytest.approx(wanted, abs=1e-6)


def test_anything_may_happen_to_a_run() -> None:
    profile = settings(max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(Anything, settings=profile)
    assert Anything.TestCase is not None
