from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from fedscale.clock import ManualClock
from fedscale.errors import Cause, Failure
from fedscale.events import Answered, Failed, Initialized, Outcome
from fedscale.learner import Phase
from fedscale.run import Run
from fedscale.task import Tasks, layout_for
from fedscale.vector import Schema, Tensor
from fedscale_simulations.books import Books
from tests.simulations.samples import plan_of

PLAN = plan_of()
SCHEMA = Schema((Tensor("w", (5,)),))
TRAIN = Tasks(("ada",), Phase.TRAIN, 1, layout_for(PLAN, Phase.TRAIN, 5, 2), SCHEMA, "")
INIT = Tasks(("ada",), Phase.INIT, 0, layout_for(PLAN, Phase.INIT, 0, 1), None, "")
OUTCOME = Outcome(1, "train", ("ada",), {"ben": Failure(Cause.LOST, "gone")}, {"loss": 0.5}, {"ada": {"loss": 0.5}}, 12.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


def test_a_client_that_is_asked_gets_the_model_once_there_is_one(clock: ManualClock) -> None:
    books = Books(clock)
    books.sent(INIT)
    assert books.down == 0
    books.sent(TRAIN)
    books.sent(TRAIN)
    assert books.down == 2 * 4 * 5


def test_answers_count_by_their_layout_failures_do_not(clock: ManualClock) -> None:
    books = Books(clock)
    books.received(Failed("ada", Failure(Cause.CODE, "x")), TRAIN)
    assert books.up == 0
    books.received(Answered("ada", ""), TRAIN)
    assert books.up == TRAIN.layout.nbytes
    books.received(Initialized("ada", "", "", np.zeros(5, np.float32)), INIT)
    assert books.up == TRAIN.layout.nbytes + 20


def test_each_phase_has_its_own_time_and_bytes(clock: ManualClock) -> None:
    books = Books(clock)
    clock.advance(2)
    books.received(Initialized("ada", "", "", np.zeros(5, np.float32)), INIT)
    assert books.close(None) is None
    for seconds in (3, 4):
        books.sent(TRAIN)
        books.received(Answered("ada", ""), TRAIN)
        clock.advance(seconds)
        closed = books.close(OUTCOME)
        assert closed is not None
        assert (closed.seconds, closed.bytes_down, closed.bytes_up) == (seconds, 20, TRAIN.layout.nbytes)
    assert (books.seconds, books.down, books.up) == (9, 40, 20 + 2 * TRAIN.layout.nbytes)
    assert len(books.rounds) == 2


def test_a_closed_round_is_the_outcome_and_its_cost(clock: ManualClock) -> None:
    closed = Books(clock).close(OUTCOME)
    assert closed is not None
    for name in ("number", "phase", "answered", "failures", "metrics", "sites", "weight"):
        assert getattr(closed, name) == getattr(OUTCOME, name)
    evaluated = Books(clock).close(replace(OUTCOME, phase="evaluate"))
    assert evaluated is not None
    assert evaluated.phase == "evaluate"


def test_books_go_on_after_a_record(clock: ManualClock) -> None:
    run = Run(PLAN, PLAN.strategy.build(), digest="ab")
    books = Books(clock)
    books.sent(TRAIN)
    clock.advance(5)
    books.close(OUTCOME)
    before = books.record(run, ("ada", "ben"))
    again = Books.after(before, clock)
    clock.advance(1)
    again.sent(TRAIN)
    closed = again.close(OUTCOME)
    assert closed is not None
    assert (closed.seconds, closed.bytes_down) == (1, 20)
    record = again.record(run, ("ada", "ben"))
    assert (record.seconds, record.bytes_down, len(record.rounds)) == (6, 40, 2)
    assert (record.nodes, record.model_digest, record.plan_hash) == (("ada", "ben"), "ab", PLAN.digest)
