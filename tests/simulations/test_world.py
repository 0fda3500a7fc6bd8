from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fedscale.errors import Cause, Failure, RunFailed
from fedscale.events import Arm, Assign, Failed, Finish, Fired, Gather, Release, Roster
from fedscale.learner import Phase
from fedscale.names import Names
from fedscale.run import Run
from fedscale.task import Tasks, layout_for
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Answer, nothing
from fedscale_simulations.pace import Still
from fedscale_simulations.world import World
from tests.simulations.samples import plan_of

NAMES = ("ada", "ben", "cyd")


class Echo:
    """An engine that answers with a failure for each task and notes whom it has worked for."""

    def __init__(self) -> None:
        self.worked: list[str] = []

    def work(self, tasks: Tasks, model: Vector | None, wanted: int | None = None, tick: Callable[[int], None] = nothing) -> Iterator[Answer]:
        for task in tasks:
            self.worked.append(task.node)
            yield Failed(task.node, Failure(Cause.CODE, "made up"))

    def close(self) -> None:
        pass


def world(engine: Echo | None = None, names: tuple[str, ...] = NAMES) -> World:
    plan = plan_of()
    return World(Run(plan, plan.strategy.build()), engine or Echo(), Still(Names.of(names)))


def assign(*nodes: str, number: int = 1, phase: Phase = Phase.TRAIN) -> Assign:
    return Assign(Tasks(nodes, phase, number, layout_for(plan_of(), phase, 3, 4), None, ""))


def test_the_roster_comes_at_once_when_enough_clients_are_there() -> None:
    here = world()
    here.perform(Gather(3))
    assert here.next() == Roster(NAMES)


def test_a_wait_for_more_clients_than_there_are_ends_with_its_timer() -> None:
    here = world()
    here.perform(Gather(4))
    here.perform(Arm("gather", 600))
    assert here.next() == Fired("gather")


def test_tasks_are_worked_when_asked_for_and_not_before() -> None:
    engine = Echo()
    here = world(engine)
    here.perform(assign(*NAMES))
    assert engine.worked == []
    answers = {here.next().node for _ in range(2)}  # type: ignore[union-attr]
    assert len(answers) == len(engine.worked) == 2


def test_release_ends_the_work_that_is_left() -> None:
    engine = Echo()
    here = world(engine)
    here.perform(assign(*NAMES))
    here.perform(Arm("deadline", 1))
    here.next()
    here.perform(Release("cyd", 1, "train"))
    assert here.next() == Fired("deadline")
    assert len(engine.worked) == 1


def test_timers_fire_when_nothing_else_can_happen_the_earliest_first() -> None:
    here = world()
    here.perform(Arm("late", 30))
    here.perform(Arm("early", 10))
    here.perform(assign("ada"))
    assert isinstance(here.next(), Failed)
    assert here.next() == Fired("early")
    here.perform(Arm("later", 25))
    here.perform(Arm("between", 15))
    assert [here.next(), here.next(), here.next()] == [Fired("between"), Fired("late"), Fired("later")]


def test_the_same_timer_armed_again_counts_from_then() -> None:
    here = world()
    here.perform(Arm("a", 10))
    here.perform(Arm("b", 20))
    here.perform(Arm("a", 30))
    assert [here.next(), here.next()] == [Fired("b"), Fired("a")]


def test_a_new_step_voids_the_timers_of_the_last() -> None:
    here = world()
    here.perform(Arm("train/1/deadline", 1))
    here.perform(Gather(3))
    here.perform(Arm("evaluate/1/gather", 600))
    assert isinstance(here.next(), Roster)
    assert here.next() == Fired("evaluate/1/gather")


def test_nothing_left_to_happen_is_an_error_not_a_loop() -> None:
    here = world()
    here.perform(Finish("completed", ""))
    with pytest.raises(RunFailed, match="waits for something"):
        here.next()


def test_clients_answer_in_a_drawn_order_that_changes_from_round_to_round() -> None:
    def order(number: int, phase: Phase = Phase.TRAIN) -> list[str]:
        engine = Echo()
        here = world(engine)
        here.perform(assign(*(f"c{at:02d}" for at in range(30)), number=number, phase=phase))
        for _ in range(30):
            here.next()
        return engine.worked

    assert sorted(order(1)) == [f"c{at:02d}" for at in range(30)]
    assert order(1) == order(1) != order(2) != sorted(order(2))
    assert order(1) != order(1, Phase.EVALUATE)


def test_progress_counts_answers_of_the_step_under_way() -> None:
    here = world()
    here.perform(assign("ada", "ben", number=4))
    here.next()
    shown = here.progress()
    assert (shown.number, shown.rounds, shown.phase, shown.done, shown.asked, shown.closed) == (4, 10, "train", 1, 2, None)
    here.perform(Gather(1))
    here.perform(assign("ada", number=4, phase=Phase.EVALUATE))
    assert (here.progress().phase, here.progress().done, here.progress().asked) == ("evaluate", 0, 1)
