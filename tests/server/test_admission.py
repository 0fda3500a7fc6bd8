"""Who may upload: a budget that is never passed, room made by those that stand still, and a crowd that comes back spread out."""

from __future__ import annotations

import pytest

from fedscale.clock import ManualClock
from fedscale.errors import Busy
from fedscale_server.admission import BASE_SECONDS, IDLE_SECONDS, LEAST_COST, MOST_COST, MOST_SECONDS, Admission
from tests.server.samples import NOW


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


async def test_small_answers_cost_little_and_large_ones_what_they_can_hold(clock: ManualClock) -> None:
    admission = Admission(4 * MOST_COST, clock.monotonic)
    costs = [admission.enter(size).cost for size in (1, LEAST_COST, LEAST_COST + 1, MOST_COST, 2 << 30)]
    assert costs == [LEAST_COST, LEAST_COST, LEAST_COST + 1, MOST_COST, MOST_COST]


async def test_the_budget_is_never_passed_and_comes_back(clock: ManualClock) -> None:
    admission = Admission(3 * MOST_COST, clock.monotonic)
    given = [admission.enter(MOST_COST) for _ in range(3)]
    with pytest.raises(Busy, match="as many answers as it can; come back later"):
        admission.enter(1)
    assert not any(leave.ousted.done() for leave in given)
    admission.leave(given[1])
    assert admission.enter(MOST_COST).cost == MOST_COST
    with pytest.raises(Busy):
        admission.enter(1)


async def test_who_stands_still_makes_room_and_who_moves_does_not(clock: ManualClock) -> None:
    admission = Admission(3 * MOST_COST, clock.monotonic)
    stuck, slow, quick = (admission.enter(MOST_COST) for _ in range(3))
    clock.advance(IDLE_SECONDS / 2)
    admission.moved(slow)
    clock.advance(IDLE_SECONDS / 2)
    admission.moved(quick)
    admission.enter(MOST_COST)
    assert isinstance(stuck.ousted.result(), Busy)
    assert not slow.ousted.done()
    with pytest.raises(Busy):
        admission.enter(MOST_COST)
    clock.advance(IDLE_SECONDS / 2)
    admission.enter(MOST_COST)
    assert slow.ousted.done()
    assert not quick.ousted.done()


async def test_several_that_stand_still_make_room_for_a_larger_one(clock: ManualClock) -> None:
    admission = Admission(MOST_COST, clock.monotonic)
    small = [admission.enter(LEAST_COST) for _ in range(MOST_COST // LEAST_COST)]
    clock.advance(IDLE_SECONDS)
    admission.enter(MOST_COST)
    assert all(leave.ousted.done() for leave in small)


async def test_an_answer_larger_than_the_budget_is_let_in_alone(clock: ManualClock) -> None:
    admission = Admission(MOST_COST // 2, clock.monotonic)
    admission.enter(2 << 30)
    with pytest.raises(Busy):
        admission.enter(1)


async def test_a_crowd_is_sent_away_for_longer_and_longer_but_not_for_ever(clock: ManualClock) -> None:
    admission = Admission(10 * MOST_COST, clock.monotonic)
    given = [admission.enter(MOST_COST) for _ in range(10)]
    told: list[float] = []
    for _ in range(2000):
        with pytest.raises(Busy) as caught:
            admission.enter(MOST_COST)
        told.append(caught.value.seconds)
    assert 0.5 * BASE_SECONDS <= told[0] <= 1.5 * BASE_SECONDS
    assert max(told) <= 1.5 * MOST_SECONDS
    assert sum(told[1000:]) > 5 * sum(told[:100])
    assert len({round(seconds, 6) for seconds in told}) > 1900
    clock.advance(2 * MOST_SECONDS)
    for leave in given:
        admission.moved(leave)
    with pytest.raises(Busy) as caught:
        admission.enter(MOST_COST)
    assert caught.value.seconds <= 1.5 * BASE_SECONDS


async def test_people_take_nothing_from_the_nodes(clock: ManualClock) -> None:
    admission = Admission(MOST_COST, clock.monotonic)
    admission.enter(MOST_COST)
    assert admission.guest().cost == 0
    admission.guest().oust(Busy("x"))
