from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.aggregate import Mean
from fedscale.errors import Cause, Failure
from fedscale.events import Answered, Arm, Assign, Effect, Event, Failed, Fired, Lost, Pause, Release, Returned, Roster, Stop
from fedscale.learner import Phase
from fedscale.metrics import BINS, Metric
from fedscale.ring import Words
from fedscale.round import MOVES, Place, Round, Status, Terms
from fedscale.update import Layout, Update
from fedscale.vector import Schema, Tensor
from tests.fedscale.world import BROKEN, vector

LAYOUT = Layout(2, (Metric("loss"),), 4, weight_cap=64)
TERMS = Terms(3, Phase.TRAIN, ("a", "b", "c", "d"), 3, 2, 60.0, 5.0, LAYOUT, Schema((Tensor("w", (2,)),)), "d1")
DEADLINE = Fired("train/3/deadline")


def words(first: float = 1.0, weight: float = 8.0, loss: float = 4.0) -> Words:
    return LAYOUT.encode(Update(vector(first, -first), weight, {"loss": np.array([loss])}))


def opened(**changes: object) -> Round:
    return Round.begin(replace(TERMS, **changes), Mean())  # type: ignore[arg-type]


def answered(node: str, first: float = 1.0) -> Answered:
    return Answered(node, f"digest of {node}", words(first))


def rejoin(node: str) -> Fired:
    return Fired(f"train/3/rejoin/{node}")


def play(current: Round, *events: Event) -> list[Effect]:
    """Handle all; the effects of the last."""
    effects: list[Effect] = []
    for event in events:
        effects = current.handle(event)
    return effects


EVENTS: dict[str, Event] = {
    "answered": answered("a"),
    "failed": Failed("a", BROKEN),
    "lost": Lost("a"),
    "returned": Returned("a"),
    "fired": rejoin("a"),
}
TO_GET_THERE: dict[Place, list[Event]] = {
    Place.ASKED: [],
    Place.ANSWERED: [EVENTS["answered"]],
    Place.LOST: [EVENTS["lost"]],
    Place.FAILED: [EVENTS["failed"]],
}
# The whole table, written out once more: where a node is, what happens, where it is then.
TABLE = {
    Place.ASKED: {"answered": Place.ANSWERED, "failed": Place.FAILED, "lost": Place.LOST, "returned": Place.ASKED, "fired": Place.ASKED},
    Place.ANSWERED: dict.fromkeys(EVENTS, Place.ANSWERED),
    Place.LOST: {"answered": Place.ANSWERED, "failed": Place.FAILED, "lost": Place.LOST, "returned": Place.ASKED, "fired": Place.FAILED},
    Place.FAILED: dict.fromkeys(EVENTS, Place.FAILED),
}


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("place", Place)
def test_every_move_of_the_table(place: Place, kind: str) -> None:
    current = opened()
    play(current, *TO_GET_THERE[place])
    assert current.places["a"] is place
    before = (dict(current.places), dict(current.failures), current.partial.words.copy(), current.partial.count)
    effects = current.handle(EVENTS[kind])
    assert current.places["a"] is TABLE[place][kind]
    assert {node: p for node, p in current.places.items() if node != "a"} == dict.fromkeys("bcd", Place.ASKED)
    if TABLE[place][kind] is place:
        assert effects == []
        assert (current.places, current.failures, current.partial.count) == (before[0], before[1], before[3])
        assert (current.partial.words == before[2]).all()
    assert ((place, kind) in MOVES) == (TABLE[place][kind] is not place)


@pytest.mark.parametrize(
    "event",
    [
        Roster(("a",)),
        Pause(),
        Stop("enough"),
        answered("stranger"),
        Failed("stranger", BROKEN),
        Lost("stranger"),
        Fired("train/2/deadline"),
        Fired("evaluate/3/deadline"),
        Fired("train/2/rejoin/a"),
        Fired("train/33/rejoin/a"),
        Fired("train/3/rejoin/"),
        Fired(""),
        Answered("a", "words that were never stored"),
    ],
)
def test_what_does_not_concern_the_round_changes_nothing(event: Event) -> None:
    current = opened()
    current.handle(Lost("b"))
    before = dict(current.places)
    assert current.handle(event) == []
    assert (current.places, current.status, current.partial.count) == (before, Status.OPEN, 0)
    assert not current.partial.words.any()


def test_everybody_is_asked_and_the_deadline_is_armed() -> None:
    current = opened()
    assert current.requests() == [Arm("train/3/deadline", 60.0), Assign(current.tasks(list("abcd")))]
    task = current.tasks(["c"]).task("c")
    assert (task.node, task.phase, task.number, task.layout, task.schema, task.model) == ("c", Phase.TRAIN, 3, LAYOUT, TERMS.schema, "d1")


def test_requests_after_a_crash_are_what_is_still_open() -> None:
    current = opened()
    play(current, answered("a"), Failed("b", BROKEN), Lost("c"))
    assert current.requests() == [Arm("train/3/deadline", 60.0), Arm("train/3/rejoin/c", 5.0), Assign(current.tasks(["d"]))]


def test_it_closes_with_the_target_and_releases_the_rest() -> None:
    current = opened()
    play(current, answered("a"), Lost("b"), answered("c"))
    assert current.status is Status.OPEN
    assert current.handle(answered("d")) == [Release("b", 3, "train")]
    assert current.status is Status.CLOSED
    assert current.answered() == ("a", "c", "d")


def test_it_closes_below_the_target_when_nobody_is_pending() -> None:
    current = opened()
    assert play(current, answered("b"), answered("a"), Failed("c", BROKEN), Failed("d", BROKEN)) == []
    assert current.status is Status.CLOSED
    assert current.answered() == ("a", "b")


def test_a_target_beyond_the_cohort_closes_when_all_have_answered() -> None:
    current = opened(target=9)
    assert play(current, *(answered(node) for node in "abcd")) == []
    assert current.status is Status.CLOSED


def test_the_deadline_closes_with_a_quorum() -> None:
    current = opened()
    play(current, answered("a"), answered("b"), Lost("c"))
    assert [effect.node for effect in current.handle(DEADLINE) if isinstance(effect, Release)] == ["c", "d"]
    assert current.status is Status.CLOSED
    assert current.failures["c"].cause is Cause.LOST
    assert current.failures["d"] == Failure(Cause.TIMEOUT, "no answer within 60 s", hint="raise clients.deadline or ask fewer epochs")


def test_the_deadline_fails_below_quorum() -> None:
    current = opened()
    play(current, answered("a"), Failed("b", BROKEN), DEADLINE)
    assert current.status is Status.FAILED
    assert current.reason() == (
        "round 3 (train): 1 of 4 nodes answered, 2 are needed: b: code: app.py:7: ValueError in the app; see the node's log; "
        "c, d: timeout: no answer within 60 s; raise clients.deadline or ask fewer epochs"
    )


def test_it_fails_at_once_when_the_quorum_is_out_of_reach() -> None:
    current = opened(quorum=3)
    play(current, Failed("a", BROKEN))
    assert current.status is Status.OPEN
    assert current.handle(Failed("b", BROKEN)) == [Release("c", 3, "train"), Release("d", 3, "train")]
    assert current.status is Status.FAILED


def test_a_lost_node_still_counts_as_pending_until_its_time_is_up() -> None:
    current = opened(quorum=4, target=4)
    assert current.handle(Lost("a")) == [Arm("train/3/rejoin/a", 5.0)]
    assert (current.status, current.failures["a"].cause) == (Status.OPEN, Cause.LOST)
    assert current.handle(rejoin("a")) == [Release(node, 3, "train") for node in "bcd"]
    assert current.status is Status.FAILED


def test_a_node_that_returns_is_asked_again() -> None:
    current = opened()
    assert play(current, Lost("a"), Returned("a")) == [Assign(current.tasks(["a"]))]
    assert current.failures == {}
    assert current.handle(rejoin("a")) == []
    assert current.places["a"] is Place.ASKED


def test_an_upload_may_outlive_its_control_stream() -> None:
    current = opened()
    play(current, Lost("a"), answered("a"))
    assert (current.places["a"], current.failures, current.partial.count) == (Place.ANSWERED, {}, 1)


@pytest.mark.parametrize("closing", [answered("c"), DEADLINE])
def test_nothing_moves_a_closed_round(closing: Event) -> None:
    current = opened()
    play(current, answered("a"), answered("b"), closing)
    assert current.status is Status.CLOSED
    before = current.partial.words.copy(), dict(current.places)
    for event in (answered("d"), Failed("d", BROKEN), Lost("d"), Returned("d"), DEADLINE, rejoin("d")):
        assert current.handle(event) == []
    assert (current.partial.words == before[0]).all()
    assert current.places == before[1]


def test_a_duplicate_is_counted_once() -> None:
    current = opened()
    play(current, answered("a", 2.0), answered("a", 2.0), answered("a", -7.0), answered("b", 1.0), DEADLINE)
    aggregate, outcome = current.result()
    assert (aggregate.count, aggregate.weight, outcome.answered) == (2, 16.0, ("a", "b"))
    assert aggregate.delta == pytest.approx([1.5, -1.5], rel=1e-6)


def test_the_outcome_of_a_round() -> None:
    current = opened()
    play(current, Answered("d", "x", words(1.0, 8.0, 4.0)), Failed("b", BROKEN), Answered("a", "y", words(4.0, 24.0, 36.0)), DEADLINE)
    aggregate, outcome = current.result()
    assert aggregate.delta == pytest.approx([3.25, -3.25], rel=1e-6)
    assert (outcome.number, outcome.phase, outcome.answered, outcome.weight) == (3, "train", ("a", "d"), 32.0)
    assert outcome.metrics == {"loss": 40.0 / 32.0}
    assert {node: failure.cause for node, failure in outcome.failures.items()} == {"b": Cause.CODE, "c": Cause.TIMEOUT}
    assert list(outcome.failures) == ["b", "c"]
    assert outcome.sites == {}


def test_sites_show_their_metrics_where_the_cell_is_large_enough() -> None:
    layout = Layout(0, (Metric("loss"), Metric.named("auc")), 4)
    current = opened(phase=Phase.EVALUATE, layout=layout, min_cell=10, target=4)
    scores = np.zeros(2 * BINS)
    scores[[200, BINS + 100]] = 5.0
    for node, weight in (("b", 10.0), ("a", 12.0), ("c", 9.0), ("d", 1.0)):
        sums = {"loss": np.array([weight / 2]), "auc": scores if node == "b" else np.zeros(2 * BINS)}
        current.handle(Answered(node, node, layout.encode(Update(np.empty(0, np.float32), weight, sums))))
    _, outcome = current.result()
    assert outcome.sites == {"a": {"loss": 0.5}, "b": {"loss": 0.5, "auc": 1.0}}
    assert list(outcome.sites) == ["a", "b"]
    assert outcome.metrics == {"loss": 0.5, "auc": 1.0}


@pytest.mark.parametrize(
    ("weights", "shown"),
    [
        ((10, 12, 9), ["b"]),
        ((12, 12, 9), ["b"]),
        ((12, 10, 5, 4), ["a"]),
        ((12, 10, 5, 5), ["a", "b"]),
        ((12, 10), ["a", "b"]),
        ((12, 9), []),
        ((9,), []),
    ],
)
def test_what_is_shown_tells_nothing_of_what_is_not(weights: tuple[float, ...], shown: list[str]) -> None:
    """All together less those that are shown would be the hidden ones: they come to a cell, or the lightest other one is hidden with them."""
    layout = Layout(0, (Metric("loss"),), 4)
    current = opened(phase=Phase.EVALUATE, layout=layout, min_cell=10, target=4)
    for node, weight in zip("abcd", weights, strict=False):
        current.handle(Answered(node, node, layout.encode(Update(np.empty(0, np.float32), float(weight), {"loss": np.array([weight / 2])}))))
    assert list(current.result()[1].sites) == shown


def test_no_site_shows_metrics_when_the_plan_shows_none() -> None:
    current = opened(min_cell=0)
    play(current, answered("a"), answered("b"), answered("c"))
    assert current.sites == {}


@pytest.mark.parametrize(("least", "told"), [(0.0, True), (16.0, True), (16.5, False)])
def test_a_sum_of_too_few_shows_neither_metrics_nor_weight_and_trains_all_the_same(least: float, told: bool) -> None:
    current = opened(least=least, target=2)
    play(current, answered("a"), answered("b", 3.0))
    aggregate, outcome = current.result()
    assert (outcome.metrics, outcome.weight) == (({"loss": 0.5}, 16.0) if told else ({}, 0.0))
    assert (aggregate.weight, aggregate.delta) == (16.0, pytest.approx([2.0, -2.0]))


@given(st.permutations("abcd"), st.integers(1, 4))
def test_any_order_of_arrival_gives_the_same_bits(order: list[str], target: int) -> None:
    current = opened(target=4, quorum=target)
    reference = opened(target=4, quorum=target)
    shares = {node: (-1.0) ** at / (3 + at) for at, node in enumerate("abcd")}
    play(current, *(answered(node, shares[node]) for node in order))
    play(reference, *(answered(node, shares[node]) for node in "abcd"))
    assert current.partial.words.tobytes() == reference.partial.words.tobytes()
    assert current.result()[1] == reference.result()[1]
