from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedscale.aggregate import Mean as MeanOfAnswers
from fedscale.errors import AppError, Cause, DataError, UpdateRejected
from fedscale.events import Assign, Event, Finish, Gather, Roster
from fedscale.learner import Phase, Result
from fedscale.metrics import BINS
from fedscale.plan import Plan
from fedscale.record import closed_rounds
from fedscale.ring import LIMBS
from fedscale.run import RUNNING, Run
from fedscale.strategy import fed_avg
from fedscale_simulations.result import Progress, Simulation
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, Site, always, engine_of, plan_of, sites


def run_of(learner: Mean | None = None, data: dict[str, Site] | None = None, **rest: Any) -> Simulation:
    return simulate(learner or Mean(), data or sites(), **{"rounds": 3, "seed": 3, **rest})


def by_hand(plan: Plan, learner: Mean, data: dict[str, Site], *, backwards: bool) -> Run:
    """The same run, driven by a loop of three lines, with answers in another order."""
    run = Run(plan, plan.strategy.build())
    engine = engine_of(run, learner, data)
    effects = run.begin()
    while run.status == RUNNING:
        asked = [effect.tasks for effect in effects if isinstance(effect, Assign)]
        events: list[Event] = [Roster(tuple(data))] if any(isinstance(effect, Gather) for effect in effects) else []
        for tasks in asked:
            events += engine.work(tasks.to(tasks.nodes[::-1]) if backwards else tasks, run.model)
        effects = [effect for event in events for effect in run.handle(event)]
    assert any(isinstance(effect, Finish) for effect in effects)
    return run


# ------------------------------------------------------------------------------------------------------------------ bits


def test_the_simulator_is_the_run_and_nothing_else() -> None:
    learner, data = Mean(), sites()
    plan = plan_of(strategy={"name": "fedadam", "rounds": 3})
    simulated = simulate(learner, data, plan=plan)
    for backwards in (False, True):
        driven = by_hand(plan, Mean(), data, backwards=backwards)
        assert driven.digest == simulated.digest
        assert [o.metrics for o in driven.history] == [row.metrics for row in simulated.record.rounds]


def test_the_same_seed_gives_the_same_model_whatever_the_order_of_the_clients() -> None:
    data = sites(8)
    turned = dict(reversed(list(data.items())))
    options: dict[str, Any] = {"clients": {"select": 4}}
    assert run_of(data=data, **options).digest == run_of(data=turned, **options).digest
    assert run_of(data=data, **options).digest != run_of(data=data, **options, seed=4).digest


def test_the_mean_is_weighted_by_examples() -> None:
    data = {"a": Site("a", 1.0, 30), "b": Site("b", 0.0, 10)}
    assert run_of(data=data, rounds=1).model["w"] == pytest.approx(0.5 * 0.75, abs=1e-5)
    assert run_of(data=data, rounds=1, strategy=fed_avg(weighting="equal")).model["w"] == pytest.approx(0.25, abs=1e-3)


def test_rounds_go_on_from_each_other() -> None:
    result = run_of(data={"a": Site("a", 1.0)}, rounds=5, aggregate={"weight_cap": 20})
    assert result.model["w"] == pytest.approx(1 - 0.5**5, abs=1e-6)


# --------------------------------------------------------------------------------------------------------------- failures


def test_a_client_that_fails_is_left_out_and_its_reason_is_kept() -> None:
    learner = Mean(always("site-1", Phase.TRAIN, ValueError("bad luck")))
    result = run_of(learner)
    without = {name: site for name, site in sites().items() if name != "site-1"}
    assert result.status == "completed"
    assert [row.number for row in result.record.rounds if row.failures] == [1, 2, 3]
    first = result.record.rounds[0]
    assert first.answered == tuple(without)
    assert list(first.failures) == ["site-1"]
    failure = first.failures["site-1"]
    assert (failure.cause, failure.what) == (Cause.CODE, "ValueError: bad luck")
    assert failure.where.startswith("samples.py:")
    assert result.record.rounds[1].failures == {}  # the evaluation, in which it takes part
    assert np.allclose(result.model["w"], run_of(data=without).model["w"], atol=1e-4)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DataError("no rows"), Cause.DATA),
        (AppError("no loss"), Cause.CODE),
        (MemoryError(), Cause.MEMORY),
        (UpdateRejected("the loss is not finite"), Cause.DIVERGED),
        (KeyError("x"), Cause.CODE),
    ],
)
def test_failures_are_typed(error: Exception, cause: Cause) -> None:
    result = run_of(Mean({("site-2", Phase.TRAIN, 2): error}))
    assert [(row.number, row.phase, failure.cause) for row in result.record.rounds for failure in row.failures.values()] == [(2, "train", cause)]
    assert result.status == "completed"


@pytest.mark.parametrize(
    ("answer", "cause", "what"),
    [
        (Result({"w": np.full(3, np.nan, np.float32)}, 5, {"loss": np.ones(1)}), Cause.DIVERGED, "not finite"),
        (Result({"w": np.full(3, 1e9, np.float32)}, 16384, {"loss": np.ones(1)}), Cause.DIVERGED, "beyond the agreed range"),
        (Result({"w": np.zeros(4, np.float32)}, 5, {"loss": np.ones(1)}), Cause.REJECTED, "shape"),
        (Result({"w": np.zeros(3, np.float32)}, 0, {"loss": np.ones(1)}), Cause.CODE, "no examples"),
        (Result({"w": np.zeros(3, np.float32)}, 5, {}), Cause.REJECTED, "metric 'loss'"),
        ("nothing", Cause.CODE, "returned str"),
    ],
)
def test_answers_that_are_none_are_failures(answer: object, cause: Cause, what: str) -> None:
    result = run_of(Mean(answers={("site-0", Phase.TRAIN, 1): answer}))
    failure = result.record.rounds[0].failures["site-0"]
    assert failure.cause is cause
    assert what in failure.what


def test_an_answer_that_a_server_would_refuse_is_refused_here() -> None:
    counts = np.full(2 * BINS, 9.0)
    learner = Mean(answers={("site-0", Phase.EVALUATE, 1): Result(None, 10, {"loss": np.ones(1), "auc": counts})})
    result = run_of(learner, data={"site-0": Site("site-0", 1.0)}, rounds=1, evaluate={"metrics": ["auc"]})
    assert result.status == "failed"
    assert "rejected: metric 'auc' counts more examples than the answer's weight" in result.record.reason


def test_a_round_without_quorum_ends_the_run_with_every_reason() -> None:
    faults = always("site-0", Phase.TRAIN, ValueError("one"), [2]) | always("site-3", Phase.TRAIN, DataError("two"), [2])
    result = run_of(Mean(faults), clients={"min_per_round": 3})
    assert result.status == "failed"
    assert re.match(r"round 2 \(train\): [0-2] of 4 nodes answered, 3 are needed: ", result.record.reason)
    assert re.search(r"site-0: code: samples.py:\d+: ValueError: one; site-3: data: samples.py:\d+: two", result.record.reason)
    assert [(row.number, row.phase) for row in result.record.rounds] == [(1, "train"), (1, "evaluate"), (2, "train")]
    assert (result.record.rounds[-1].answered, sorted(result.record.rounds[-1].failures)) == ((), ["site-0", "site-3"])
    assert "failed after 1 round " in result.summary().splitlines()[0]
    assert "failures  1 code, 1 data" in result.summary()
    assert result.model["w"].any()  # the model of the last round that closed


def test_a_hopeless_round_is_not_worked_to_its_end() -> None:
    learner = Mean({(name, Phase.TRAIN, 1): ValueError() for name in sites(9)})
    run_of(learner, sites(9), clients={"min_per_round": 8})
    assert len(learner.worked(Phase.TRAIN, 1)) == 2


def test_the_first_model_comes_from_another_client_where_one_fails() -> None:
    faults = {(name, Phase.INIT, 0): ValueError("no model") for name in ("site-0", "site-1", "site-2")}
    learner = Mean(faults)
    assert run_of(learner).status == "completed"
    assert learner.worked(Phase.INIT, 0)[-1] == "site-3"
    failed = run_of(Mean(faults | {("site-3", Phase.INIT, 0): ValueError("no model")}))
    assert failed.status == "failed"
    assert failed.record.reason.startswith("no node could make the first model: site-0, site-1, site-2, site-3: code: ")
    assert failed.digest == ""


def test_clients_that_are_never_there_together_end_the_run_by_its_deadline() -> None:
    result = run_of(clients={"wait_for": 4, "deadline": "20m"}, devices={"hours": 0.3, "night": 2.0, "start": 12.0})
    assert (result.status, result.record.reason) == ("failed", "fewer than 4 nodes were there within 1200 s")


def test_an_interrupt_is_no_failure_of_a_client() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_of(Mean({("site-1", Phase.TRAIN, 2): KeyboardInterrupt()}))


# ---------------------------------------------------------------------------------------------------------------- cohorts


def test_a_cohort_is_drawn_anew_each_round() -> None:
    result = run_of(data=sites(12), clients={"select": 3}, evaluate={"select": 2}, rounds=6)
    trained = [row.answered for row in result.record.rounds if row.phase == "train"]
    evaluated = [row.answered for row in result.record.rounds if row.phase == "evaluate"]
    assert {len(names) for names in trained} == {3}
    assert {len(names) for names in evaluated} == {2}
    assert len(set(trained)) > 3


def test_over_selection_closes_early_and_favours_nobody() -> None:
    learner = Mean()
    result = run_of(learner, sites(10), clients={"select": 5, "over_select": 2.0}, evaluate={"every": 0}, rounds=60)
    assert {len(row.answered) for row in result.record.rounds} == {5}
    assert {len(learner.worked(Phase.TRAIN, number)) for number in range(1, 61)} == {5}  # the others are released before they begin
    counts = Counter(name for row in result.record.rounds for name in row.answered)
    assert len(counts) == 10
    assert min(counts.values()) > 15


def test_over_selection_makes_up_for_failures() -> None:
    faults = always("site-0", Phase.TRAIN, ValueError()) | always("site-1", Phase.TRAIN, ValueError())
    result = run_of(Mean(faults), sites(6), clients={"select": 4, "over_select": 1.5, "min_per_round": 4})
    assert result.status == "completed"
    assert {row.answered for row in result.record.rounds if row.phase == "train"} == {("site-2", "site-3", "site-4", "site-5")}


# -------------------------------------------------------------------------------------------------------------- schedules


def test_evaluation_every_so_many_rounds_and_at_the_end() -> None:
    def evaluated(every: int, rounds: int) -> list[int]:
        return [row.number for row in run_of(rounds=rounds, evaluate={"every": every}).record.rounds if row.phase == "evaluate"]

    assert evaluated(2, 5) == [2, 4, 5]
    assert evaluated(3, 6) == [3, 6]
    assert evaluated(0, 3) == []


def test_patience_ends_a_run_that_gets_no_better() -> None:
    data = {"a": Site("a", 0.5)}
    result = run_of(data=data, rounds=100, evaluate={"patience": 3})
    assert result.status == "completed"
    assert result.record.reason == "no better loss in 3 evaluations"
    assert len(result.record.rounds) < 60


def test_sites_show_their_own_metrics_above_the_smallest_cell() -> None:
    data = {"big": Site("big", 0.0, 60), "next": Site("next", 0.0, 30), "tiny": Site("tiny", 0.0, 5)}
    shown = run_of(data=data, evaluate={"min_cell": 10}).record.rounds[1]
    assert shown.phase == "evaluate"
    assert list(shown.sites) == ["big"]
    assert run_of(data=data, evaluate={"per_site": False}).record.rounds[1].sites == {}


# ----------------------------------------------------------------------------------------------------------------- record


def test_bytes_are_what_would_have_travelled() -> None:
    learner = Mean(always("site-1", Phase.TRAIN, ValueError(), [2]))
    result = run_of(learner, rounds=2)
    train, evaluate, second, _ = result.record.rounds
    model, answer, metrics = 3 * 4, (3 + LIMBS * 2) * 4, LIMBS * 2 * 4
    assert (train.bytes_down, train.bytes_up) == (4 * model, 4 * answer)
    assert (evaluate.bytes_down, evaluate.bytes_up) == (4 * model, 4 * metrics)
    assert (second.bytes_down, second.bytes_up) == (4 * model, 3 * answer)
    assert result.record.bytes_up == model + sum(row.bytes_up for row in result.record.rounds)
    assert result.record.bytes_down == sum(row.bytes_down for row in result.record.rounds)


def test_a_failed_round_counts_in_the_totals() -> None:
    learner = Mean(always("site-1", Phase.TRAIN, ValueError(), [1]))
    result = run_of(learner, clients={"min_per_round": 4})
    assert result.status == "failed"
    (row,) = result.record.rounds
    assert (row.number, row.phase, row.answered, list(row.failures), row.metrics) == (1, "train", (), ["site-1"], {})
    assert closed_rounds(result.record) == 0
    assert row.bytes_down == result.record.bytes_down == 4 * 12
    assert result.record.bytes_up == 12, "the first model"


def test_the_record_says_what_was_run() -> None:
    result = run_of(name="heart")
    record = result.record
    plan = Plan.from_toml(record.plan_toml)
    assert record.name == plan.job.name == "heart"
    assert record.plan_hash == plan.digest
    assert record.run == f"simulation-{plan.digest[:12]}"
    assert record.nodes == tuple(sites())
    assert record.model_digest == result.digest
    assert record.extra["seeds"] == {"job": 3}
    assert set(record.extra["versions"]) == {"fedscale", "python", "numpy"}  # type: ignore[arg-type]
    assert [(row.number, row.phase) for row in record.rounds] == [(n, p) for n in (1, 2, 3) for p in ("train", "evaluate")]
    assert all(row.seconds >= 0 for row in record.rounds)
    assert record.seconds >= sum(row.seconds for row in record.rounds)


def test_progress_is_shown_for_every_client_and_every_closed_phase() -> None:
    shown: list[Progress] = []
    result = run_of(rounds=2, on_progress=shown.append)
    assert [p.closed for p in shown if p.closed] == list(result.record.rounds)
    assert [(p.number, p.phase, p.done, p.asked) for p in shown[:3]] == [(0, "init", 1, 1), (0, "init", 1, 1), (1, "train", 1, 4)]
    assert [(p.done, p.asked) for p in shown if (p.number, p.phase) == (2, "evaluate")] == [(1, 4), (2, 4), (3, 4), (4, 4), (4, 4)]
    assert {p.rounds for p in shown} == {2}


def test_a_strategy_composed_by_hand_is_simulated() -> None:
    doubled = replace(fed_avg(lr=2.0, weighting="equal"), aggregator=MeanOfAnswers())
    result = run_of(data={"a": Site("a", 1.0)}, strategy=doubled, rounds=1, aggregate={"weight_cap": 20})
    assert result.model["w"] == pytest.approx(1.0, abs=1e-6)
    plan = Plan.from_toml(result.record.plan_toml)
    assert (plan.strategy.name, plan.strategy.weighting, plan.strategy.model_extra) == ("custom", "equal", {"weighting": "equal"})
