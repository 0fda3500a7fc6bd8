"""Secure aggregation inside the round: the exact sum of whoever is left, or nothing; after a crash at any point as well."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale import round as rounds
from fedscale.aggregate import Mean
from fedscale.errors import Cause, PlanError, ProtocolError
from fedscale.events import Answered, Arm, Assign, Failed, Fired, Lost, Release, Returned, Roster, Spoke, Summed, Tell
from fedscale.learner import Phase
from fedscale.masked import Ground, filled, roster_of, terms_for
from fedscale.plan import Plan
from fedscale.ring import WORD
from fedscale.round import Place, Status
from fedscale.run import Run
from fedscale.secagg import messages as m
from fedscale.secagg.parameters import Profile
from fedscale.secagg.terms import Suite
from fedscale.strategy import Strategy, fed_avg
from fedscale.update import Layout
from tests.circle import BROKEN, MODEL, SCHEMA, STEPS, Circle, names_of, plan_of
from tests.fedscale.world import World

HOWS = ("silent", "failed", "lost")


def curious() -> Plan:
    return plan_of(secagg={"profile": "curious"})


# ------------------------------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.EVALUATE])
@pytest.mark.parametrize("bits", [32, 24])
@pytest.mark.parametrize("count", [3, 4, 9])
def test_the_opened_sum_is_the_sum(count: int, bits: int, phase: Phase) -> None:
    circle = Circle(names_of(count), plan_of(secagg={"bits": bits}), phase=phase).play()
    assert circle.round.status is Status.CLOSED, circle.round.reason()
    expected = circle.sum_of(circle.names)
    if bits == 24:
        assert np.abs(expected.view(np.int32)).max() < 2**23
    assert (circle.round.partial.words == expected).all()
    assert circle.round.answered() == circle.names
    assert circle.round.result()[1].weight == sum(range(1, count + 1))


def test_no_vector_that_travels_is_one_in_the_clear() -> None:
    circle = Circle(names_of(4)).play()
    sent = {event.node: event.words for event in circle.events if isinstance(event, Answered)}
    assert set(sent) == set(circle.names)
    for name, words in sent.items():
        assert words is not None
        assert not (words[:] == circle.words[name]).any()


def test_a_merely_curious_server_needs_no_signatures() -> None:
    circle = Circle(names_of(4), curious())
    for name, site in circle.sites.items():
        circle.nodes[name] = type(circle.nodes[name])(
            replace(site, roster=circle.masked.roster, policy=replace(site.policy, curious=True)), circle.masked.server.terms
        )
    circle.said.clear()
    circle.take(circle.round.requests())
    circle.play()
    assert circle.round.status is Status.CLOSED
    assert {tell.step for tell in circle.heard} == set(STEPS) - {"consent"}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("step", STEPS)
def test_one_of_five_may_drop_out_at_any_step(step: str, how: str) -> None:
    circle = Circle(names_of(5), drops={"site-2": (step, how)}).play()
    assert circle.round.status is Status.CLOSED, circle.round.reason()
    late = step in STEPS[4:]
    left = circle.names if late else ("site-0", "site-1", "site-3", "site-4")
    assert circle.round.answered() == left
    assert (circle.round.partial.words == circle.sum_of(left)).all()
    failures = circle.round.result()[1].failures
    assert set(failures) == (set() if late else {"site-2"})
    if not late:
        assert failures["site-2"].cause is {"silent": Cause.TIMEOUT, "failed": Cause.CODE, "lost": Cause.LOST}[how]


@pytest.mark.parametrize("step", STEPS)
def test_one_too_many_ends_the_round_and_opens_nothing(step: str) -> None:
    circle = Circle(names_of(5), drops=dict.fromkeys(("site-1", "site-2"), (step, "failed"))).play()
    assert circle.round.status is Status.FAILED
    assert not circle.round.partial.words.any()
    assert circle.masked.outcome is None
    assert "site-1, site-2: code: ValueError in the app" in circle.round.reason()
    assert circle.round.reason().startswith("round 4 (train): ")
    assert circle.round.handle(Fired(circle.round.timer())) == []


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(3, 8),
    drops=st.dictionaries(st.integers(0, 7), st.tuples(st.sampled_from(STEPS), st.sampled_from(HOWS)), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_whoever_drops_out_whenever_the_sum_is_exact_or_there_is_none(count: int, drops: dict[int, tuple[str, str]], order: object) -> None:
    script = {f"site-{at}": drop for at, drop in drops.items() if at < count}
    circle = Circle(names_of(count), drops=script)
    while circle.round.status is Status.OPEN:
        order.shuffle(circle.said) if len(circle.said) > 1 and not any(isinstance(e, Fired) for e in circle.said) else None  # type: ignore[attr-defined]
        circle.step()
    if circle.round.status is Status.CLOSED:
        assert len(circle.round.answered()) >= 3
        assert (circle.round.partial.words == circle.sum_of(circle.round.answered())).all()
    else:
        assert not circle.round.partial.words.any()
    assert circle.round.status is Status.CLOSED or len(script) > count // 4


# ------------------------------------------------------------------------------------------------------- crash and replay


@pytest.mark.parametrize("drops", [{}, {"site-1": ("shares", "lost")}, {"site-3": ("vector", "failed")}, {"site-0": ("consent", "lost")}])
def test_a_crash_before_any_event_changes_nothing(drops: dict[str, tuple[str, str]]) -> None:
    def crash(circle: Circle) -> None:
        again = circle.replayed()
        assert again.requests() == circle.round.requests()
        assert (again.places, again.status, again.failures) == (circle.round.places, circle.round.status, circle.round.failures)
        assert again.masked is not None
        assert (again.masked.step, again.masked.waiting) == (circle.masked.step, circle.masked.waiting)
        circle.round = again
        # Everybody is told again what it was told before, and says the same or nothing new.
        for effect in again.requests():
            if isinstance(effect, Tell) and effect.node not in circle.gone and effect.step != "vector":
                assert circle.nodes[effect.node].handle(effect.data) is not None

    circle = Circle(names_of(5), drops=drops, watch=crash).play()
    assert circle.round.status is Status.CLOSED
    assert (circle.round.partial.words == circle.sum_of(circle.round.answered())).all()


# ------------------------------------------------------------------------------------------------------- single events


def test_everybody_is_asked_and_told_at_once() -> None:
    circle = Circle(names_of(3))
    effects = circle.fresh().requests()
    assert [type(effect) for effect in effects] == [Arm, Assign, Arm, Tell, Tell, Tell]
    assert effects[2] == Arm("train/4/keys", 15.0)
    assert {effect.step for effect in effects if isinstance(effect, Tell)} == {"keys"}
    assert m.decode(next(effect.data for effect in effects if isinstance(effect, Tell))) == m.Open(circle.masked.server.terms)


def test_the_patience_for_a_message_has_an_upper_limit() -> None:
    plan = plan_of(clients={"min_per_round": 3, "deadline": 6000.0})
    assert Arm("train/4/keys", rounds.PATIENCE) in Circle(names_of(3), plan).fresh().requests()


@pytest.mark.parametrize("data", ["", "!", b64encode(b"nonsense").decode(), b64encode(m.encode(m.Masked(bytes(32)))).decode()])
def test_a_message_that_is_none_costs_its_sender_the_round(data: str) -> None:
    circle = Circle(names_of(5))
    circle.said.remove(next(e for e in circle.said if isinstance(e, Spoke) and e.node == "site-4"))
    circle.send(Spoke("site-4", "keys", data))
    assert circle.round.places["site-4"] is Place.FAILED
    assert circle.round.failures["site-4"].cause is Cause.REJECTED
    circle.play()
    assert circle.round.status is Status.CLOSED
    assert circle.round.answered() == names_of(4)


def test_what_is_not_due_changes_nothing() -> None:
    circle = Circle(names_of(4)).play(until="shares")
    before = (dict(circle.round.places), set(circle.masked.waiting))
    old = next(e for e in circle.events if isinstance(e, Spoke))
    for event in (
        old,
        Spoke("stranger", "shares", ""),
        Spoke("site-0", "vector", ""),
        Answered("site-0", "early", circle.words["site-0"]),
        Summed(circle.names, circle.sum_of(circle.names)),
        Fired("train/4/keys"),
        Fired("train/4/consent"),
    ):
        assert circle.round.handle(event) == []
    assert (dict(circle.round.places), set(circle.masked.waiting)) == before
    assert not circle.round.partial.words.any()
    heard = next(e for e in circle.said if isinstance(e, Spoke))
    circle.said.remove(heard)
    circle.send(heard)
    told = {effect.node for effect in circle.round.requests() if isinstance(effect, Tell)}
    assert told == set(circle.names) - {heard.node}, "who has answered is not asked again"
    due = circle.said[0]
    assert isinstance(due, Spoke)
    assert [circle.round.hears(due.node, "shares"), circle.round.hears(due.node, "keys"), circle.round.wants(due.node)] == [True, False, False]
    circle.play()
    assert circle.round.status is Status.CLOSED


def test_a_vector_is_wanted_once_and_at_its_step() -> None:
    circle = Circle(names_of(4)).play(until="vector")
    assert circle.round.wants("site-1")
    assert not circle.round.hears("site-1", "vector")
    first = next(e for e in circle.said if isinstance(e, Answered) and e.node == "site-1")
    circle.said.remove(first)
    circle.send(first)
    assert not circle.round.wants("site-1")
    assert circle.round.handle(first) == []
    circle.play()
    assert (circle.round.partial.words == circle.sum_of(circle.names)).all()


def test_a_vector_of_a_wrong_size_costs_its_sender_the_round() -> None:
    circle = Circle(names_of(5)).play(until="vector")
    circle.said = type(circle.said)(e for e in circle.said if not (isinstance(e, Answered) and e.node == "site-2"))
    circle.send(Answered("site-2", "short", np.zeros(3, WORD)))
    assert circle.round.places["site-2"] is Place.FAILED
    circle.play()
    assert circle.round.answered() == ("site-0", "site-1", "site-3", "site-4")


@pytest.mark.parametrize("step", STEPS)
def test_a_node_that_comes_back_is_told_again_what_is_due(step: str) -> None:
    circle = Circle(names_of(4)).play(until=step)
    own = next(e for e in circle.said if isinstance(e, Spoke | Answered) and e.node == "site-3")
    circle.said.remove(own)
    lost = circle.round.handle(Lost("site-3"))
    assert lost == [Arm("train/4/rejoin/site-3", 5.0)]
    assert (circle.round.gone("site-3"), circle.round.owes("site-3")) == (True, True)
    assert not any(isinstance(e, Tell) and e.node == "site-3" for e in circle.round.requests())
    assert Arm("train/4/rejoin/site-3", 5.0) in circle.round.requests()
    back = circle.round.handle(Returned("site-3"))
    assert [type(effect) for effect in back] == ([Assign, Tell] if step in STEPS[:4] else [Tell])
    assert back == circle.round.requests_of("site-3")
    circle.said.append(own)
    circle.play()
    assert circle.round.answered() == circle.names


def test_the_deadline_ends_the_wait_for_vectors_only() -> None:
    early = Circle(names_of(4)).play(until="agreement")
    effects = early.round.handle(Fired(early.round.timer()))
    assert early.round.status is Status.FAILED
    assert {effect.node for effect in effects if isinstance(effect, Release)} == set(early.names)
    late = Circle(names_of(4)).play(until="opening")
    assert late.round.handle(Fired(late.round.timer())) == []
    assert late.play().round.status is Status.CLOSED


def test_a_round_that_asks_more_than_it_needs_closes_with_the_first() -> None:
    circle = Circle(names_of(8))
    circle.round.terms = replace(circle.round.terms, target=6)
    circle.play()
    assert circle.round.status is Status.CLOSED
    assert len(circle.round.answered()) == 6
    assert (circle.round.partial.words == circle.sum_of(circle.round.answered())).all()
    assert circle.round.result()[1].failures == {}


def test_a_sum_that_nobody_honest_could_send_fails_the_round() -> None:
    circle = Circle(names_of(4)).play(until="vector")
    layout = circle.terms.layout
    words = circle.words["site-0"].copy()
    words[layout.size : layout.size + 5] = 4095
    for at, event in enumerate(circle.said):
        if isinstance(event, Answered) and event.words is not None:
            heavier = words - circle.words[event.node]
            circle.said[at] = replace(event, words=event.words[:] + heavier)
    circle.play()
    assert circle.round.status is Status.FAILED
    assert "the weight of a sum is not within its bounds" in circle.round.reason()
    assert not circle.round.partial.words.any()


def test_a_failure_while_the_sum_is_opened_is_in_the_reason_when_it_matters() -> None:
    circle = Circle(names_of(4)).play(until="opening")
    circle.said.clear()
    for node in ("site-0", "site-1"):
        circle.send(Failed(node, BROKEN))
    circle.play()
    assert circle.round.status is Status.FAILED
    assert "the sum cannot be opened" in circle.round.reason()
    assert "site-0, site-1: code: ValueError in the app" in circle.round.reason()


# --------------------------------------------------------------------------------------------------------------- terms


def test_terms_of_training_and_evaluation_differ_and_rise() -> None:
    plan, roster = plan_of(), roster_of(("a", "b", "c"), {"a": "01" * 32, "b": "02" * 32, "c": "03" * 32})
    layout = Layout(5, (), 3)
    train, evaluate = (terms_for(Ground("r", "c"), plan, phase, 7, layout, SCHEMA, MODEL, roster) for phase in (Phase.TRAIN, Phase.EVALUATE))
    following = terms_for(Ground("r", "c"), plan, Phase.TRAIN, 8, layout, SCHEMA, MODEL, roster)
    assert [train.round, evaluate.round, following.round] == [13, 14, 15]
    assert train.model != evaluate.model
    assert (train.suite, train.profile, train.length) == (Suite.SILO, Profile.MALICIOUS, layout.length)
    changed = [
        terms_for(Ground("s", "c"), plan, Phase.TRAIN, 7, layout, SCHEMA, MODEL, roster),
        terms_for(Ground("r", "d"), plan, Phase.TRAIN, 7, layout, SCHEMA, MODEL, roster),
        terms_for(Ground("r", "c"), plan_of(job={"name": "other"}), Phase.TRAIN, 7, layout, SCHEMA, MODEL, roster),
        terms_for(Ground("r", "c"), plan, Phase.TRAIN, 7, layout, SCHEMA, "cd" * 32, roster),
    ]
    assert len({terms.digest for terms in (train, evaluate, following, *changed)}) == 7


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("count", [3, 50, 51, 1000])
def test_the_ring_has_room_for_every_cohort(count: int, bits: int) -> None:
    keys = {f"n{at:04}": at.to_bytes(32).hex() for at in range(1, count + 1)}
    layout = Layout(5, (), count, bits=bits)
    terms = terms_for(Ground(), plan_of(secagg={"bits": bits, "dropout": 0.1}), Phase.TRAIN, 1, layout, SCHEMA, MODEL, roster_of(keys, keys))
    assert terms.suite is (Suite.SILO if count <= 50 else Suite.GRAPH)
    assert terms.parameters(count).threshold > count / 3 or count > 50
    assert terms.limit >= 4095
    assert terms.limit * count < 2 ** (bits - 1)
    assert layout.nbytes == layout.length * bits // 8 + (-layout.length * bits // 8) % 4


def test_packed_words_are_filled_up() -> None:
    assert [len(filled(bytes(size))) for size in (0, 1, 3, 4, 15)] == [0, 4, 4, 4, 16]


def test_a_roster_lists_each_node_with_a_key_of_its_own() -> None:
    with pytest.raises(PlanError, match="node 'b' has no identity key"):
        roster_of(("b", "a"), {"a": "01" * 32})
    with pytest.raises(ProtocolError, match="lists a node twice"):
        roster_of(("a", "b"), {"a": "01" * 32, "b": "01" * 32})


# ---------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ({"clients": {"min_per_round": 2}}, "clients.min_per_round is 2, secure aggregation needs at least 3"),
        ({"clients": {}}, "secure aggregation needs at least 3"),
        ({"strategy": {"name": "fedbuff"}}, "'fedbuff' cannot run under secure aggregation"),
        ({"secagg": {"adversarial": 0.1, "dropout": 0.4}, "clients": {"min_per_round": 3, "select": 10}}, "6 of 10 nodes may remain"),
        ({"secagg": {"bits": 24}, "clients": {"min_per_round": 3, "select": 3000}}, "the ring is too short for 3000 nodes"),
    ],
)
def test_a_plan_that_cannot_be_masked_is_refused_with_the_reason(tables: dict[str, object], what: str) -> None:
    with pytest.raises(PlanError, match=what):
        plan_of(**tables)


def test_a_strategy_that_looks_at_single_answers_is_refused() -> None:
    class Middle(Mean):
        linear: ClassVar[bool] = False

    robust = Strategy(fed_avg().optimizer, Middle())
    with pytest.raises(PlanError, match="it looks at each node's answer by itself"):
        Run(plan_of(strategy={"name": "custom"}), robust)
    assert Run(plan_of(strategy={"name": "custom"}, secagg={"enabled": False}), robust).status == "running"


def test_a_run_without_keys_or_with_too_few_nodes_fails_with_the_reason() -> None:
    world = World(plan_of())
    world.start("a", "b", "c")
    world.send(Roster(("a", "b", "c"), {"a": "01" * 32}))
    assert world.run.status == "failed"
    assert "node 'b' has no identity key" in world.run.reason


def test_a_table_that_is_switched_off_is_not_in_force() -> None:
    plan = plan_of(secagg={"enabled": False, "bits": 24})
    assert plan.secagg.word_bits == 32
    world = World(plan)
    world.begin("a", "b", "c")
    assert world.round.masked is None
    assert world.round.terms.layout.bits == 32
