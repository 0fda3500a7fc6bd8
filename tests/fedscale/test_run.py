from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fedscale.errors import Cause, Failure, ProtocolError
from fedscale.events import (
    Answered,
    Arm,
    Assign,
    Commit,
    Event,
    Failed,
    Finish,
    Fired,
    Gather,
    Initialized,
    Lost,
    Pause,
    Release,
    Resume,
    Returned,
    Roster,
    Stop,
)
from fedscale.learner import Phase
from fedscale.metrics import BINS
from fedscale.optimizers import sgd
from fedscale.ring import FixedPoint
from fedscale.run import Run, model_digest
from fedscale.sampling import cohort
from fedscale.strategy import Strategy
from fedscale.transform import ClipNorm
from tests.fedscale.world import BROKEN, NODES, SCHEMA, World, bits, plan_of, vector

QUIET = {"every": 0}


def world(rounds: int = 3, **tables: Any) -> World:
    """Train only, unless told otherwise."""
    tables = {"evaluate": QUIET, **tables}
    tables["strategy"] = {"rounds": rounds, **tables.get("strategy", {})}
    return World(plan_of(**tables))


# ------------------------------------------------------------------------------------------------------ the first model


def test_a_run_gathers_then_asks_one_node_for_the_first_model() -> None:
    here = world(clients={"min_per_round": 2, "wait_for": 3, "deadline": "1m"})
    assert here.effects == [Gather(3), Arm("init/0/gather", 60.0)]
    here.send(Roster(NODES))
    asked = cohort(0, 0, NODES, 1)[0]
    assert (here.run.asked, list(here.tasks), here.timers) == (asked, [asked], {f"init/0/{asked}": 60.0})
    task = here.tasks[asked]
    assert (task.phase, task.number, task.schema, task.model, task.layout.size) == (Phase.INIT, 0, None, "", 0)
    first = vector(1, 2, 3, 4, 5, 6, 7)
    here.initialize(first)
    assert here.effects == [Commit(None), Gather(2), Arm("train/1/gather", 60.0)]
    assert (here.run.schema, here.run.digest, here.run.phase, here.run.number) == (SCHEMA, model_digest(first), Phase.TRAIN, 1)


def test_too_few_nodes_are_waited_for() -> None:
    here = world(clients={"min_per_round": 2, "wait_for": 3})
    assert here.send(Roster(("ada", "ben", "ben"))) == [Gather(3), Arm("init/0/gather", 600.0)]
    assert here.run.asked == ""


@pytest.mark.parametrize(
    ("event", "cause", "what"),
    [
        (lambda node: Failed(node, BROKEN), Cause.CODE, BROKEN.what),
        (Lost, Cause.LOST, "the connection to the node broke"),
        (lambda node: Fired(f"init/0/{node}"), Cause.TIMEOUT, "no first model within 600 s"),
    ],
)
def test_the_first_model_falls_to_the_next_node(event: Any, cause: Cause, what: str) -> None:
    here = world()
    here.send(Roster(NODES))
    first = here.run.asked
    here.send(event(first))
    assert here.effects == [Release(first, 0, "init"), Gather(1), Arm("init/0/gather", 600.0)]
    assert (here.run.unable[first].cause, here.run.unable[first].what) == (cause, what)
    here.send(Roster(NODES))
    assert here.run.asked not in ("", first)
    here.initialize()
    assert (here.run.phase, here.run.number) == (Phase.TRAIN, 1)


def test_a_run_fails_when_no_node_can_make_the_first_model() -> None:
    here = world()
    for _ in range(2):
        here.send(Roster(("ada", "ben")))
        here.send(Failed(here.run.asked, BROKEN))
    here.send(Roster(("ada", "ben")))
    cause = "code: app.py:7: ValueError in the app; see the node's log"
    assert here.finish == Finish("failed", f"no node could make the first model: ada, ben: {cause}")


@pytest.mark.parametrize(
    "event",
    [
        Initialized("nobody", SCHEMA.to_json(), "0", vector(0, 0, 0, 0, 0, 0, 0)),
        Failed("nobody", BROKEN),
        Lost("nobody"),
        Fired("init/0/nobody"),
        Fired("init/0/gather"),
        Roster(NODES),
        Answered("ada", "0", np.zeros(3, np.uint32)),
    ],
)
def test_others_do_not_disturb_the_first_model(event: Event) -> None:
    here = world()
    here.send(Roster(NODES))
    before = bits(here.run)
    assert here.send(event) == []
    assert bits(here.run) == before


def test_a_first_model_without_its_values_is_not_taken() -> None:
    here = world()
    here.send(Roster(NODES))
    assert here.send(Initialized(here.run.asked, SCHEMA.to_json(), "0")) == []
    assert here.run.model is None


def test_nobody_comes() -> None:
    here = world(clients={"min_per_round": 3, "deadline": 5})
    here.send(Fired("init/0/gather"))
    assert here.finish == Finish("failed", "fewer than 3 nodes were there within 5 s")


# ----------------------------------------------------------------------------------------------------- rounds of training


def test_a_round_applies_the_weighted_mean() -> None:
    here = world(1, strategy={"name": "fedavg", "lr": 0.5}, aggregate={"weight_cap": 64})
    first = vector(1, 2, 3, 4, 5, 6, 7)
    here.start("ada", "ben", model=first)
    here.send(Roster(("ada", "ben")))
    here.answer("ben", vector(1, 0, 0, 0, 0, 0, 2), weight=48, loss=24)
    here.answer("ada", vector(5, 0, 0, 0, 0, 0, -2), weight=16, loss=8)
    assert here.run.model == pytest.approx(first + 0.5 * vector(2, 0, 0, 0, 0, 0, 1), rel=1e-6)
    assert here.run.model is not None
    assert here.run.digest == model_digest(here.run.model)
    outcome = here.outcomes[0]
    assert outcome is not None
    assert (outcome.answered, outcome.weight, outcome.metrics) == (("ada", "ben"), 64.0, {"loss": 0.5})
    assert here.finish == Finish("completed", "")


def test_the_next_round_hands_out_the_new_model() -> None:
    here = world(2)
    here.begin()
    digests = {task.model for task in here.tasks.values()}
    assert digests == {model_digest(SCHEMA.zeros())}
    here.everybody(0.25)
    assert (here.run.number, here.effects[-2:]) == (2, [Gather(1), Arm("train/2/gather", 600.0)])
    here.send(Roster(NODES))
    assert {(task.model, task.number) for task in here.tasks.values()} == {(model_digest(np.full(7, 0.25, np.float32)), 2)}


def test_transforms_are_undone_on_the_sum() -> None:
    strategy = Strategy(sgd(1.0), transforms=(ClipNorm(1.0),))
    here = World(plan_of(strategy={"name": "custom", "rounds": 1}, evaluate=QUIET), strategy)
    here.begin("ada")
    here.everybody(0.5)
    assert here.run.model == pytest.approx(np.full(7, 0.5))


@pytest.mark.parametrize(
    ("clients", "asked", "target"),
    [
        ({}, 4, 4),
        ({"select": 2}, 2, 2),
        ({"select": 2, "over_select": 1.5}, 3, 2),
        ({"select": 0.5}, 2, 2),
        ({"select": 0.5, "over_select": 10}, 4, 2),
        ({"select": 0.1, "min_per_round": 3}, 3, 3),
        ({"select": 100}, 4, 4),
    ],
)
def test_who_is_asked(clients: dict[str, Any], asked: int, target: int) -> None:
    here = world(clients=clients)
    here.begin()
    terms = here.round.terms
    assert (len(here.tasks), terms.target, terms.layout.terms) == (asked, target, asked)
    assert terms.cohort == cohort(0, 1, NODES, asked)
    assert terms.layout.format == FixedPoint.for_sum(asked, 8.0)


def test_an_asynchronous_round_asks_everybody_who_has_arrived() -> None:
    here = world(clients={"select": 2, "over_select": 1.5}, strategy={"name": "fedbuff", "buffer": 3}, evaluate={"select": 1})
    here.begin()
    assert (here.round.terms.cohort, here.round.terms.target) == (NODES, 4)
    here.everybody(0.5)
    here.send(Roster(NODES))
    assert here.round.terms.phase is Phase.EVALUATE
    assert (len(here.round.terms.cohort), here.round.terms.target) == (2, 1)


def test_over_selection_releases_whoever_is_late() -> None:
    here = world(clients={"select": 2, "over_select": 2})
    here.begin()
    late = here.words(1.0)
    here.answer("ada")
    here.answer("cyd")
    assert sorted(here.released) == ["ben", "dee"]
    outcome, model = here.outcomes[0], here.run.digest
    assert outcome is not None
    assert (outcome.answered, outcome.failures) == (("ada", "cyd"), {})
    assert here.send(Answered("ben", "late", late)) == []
    assert here.run.digest == model


def test_a_deadline_with_a_quorum_goes_on() -> None:
    here = world(clients={"min_per_round": 2, "deadline": 60})
    here.begin()
    assert here.timers == {"train/1/deadline": 60.0}
    here.answer("ada", 1.0)
    here.answer("dee", 1.0)
    here.send(Fired("train/1/deadline"))
    assert here.outcomes[0] is not None
    assert here.outcomes[0].answered == ("ada", "dee")
    assert {node: f.cause for node, f in here.outcomes[0].failures.items()} == {"ben": Cause.TIMEOUT, "cyd": Cause.TIMEOUT}
    assert (here.run.number, here.run.status) == (2, "running")


def test_a_deadline_below_quorum_ends_the_run_and_says_why() -> None:
    here = world(clients={"min_per_round": 2, "deadline": 60})
    here.begin("ada", "ben")
    here.answer("ada")
    here.send(Fired("train/1/deadline"))
    reason = "round 1 (train): 1 of 2 nodes answered, 2 are needed: ben: timeout: no answer within 60 s; raise clients.deadline or ask fewer epochs"
    assert here.finish == Finish("failed", reason)
    assert here.run.digest == model_digest(SCHEMA.zeros())


def test_an_impossible_quorum_ends_the_run_at_once() -> None:
    here = world(clients={"min_per_round": 3})
    here.begin()
    here.send(Failed("ada", BROKEN))
    assert here.run.status == "running"
    here.send(Failed("ben", BROKEN))
    assert sorted(here.released) == ["cyd", "dee"]
    assert here.finish is not None
    assert here.finish.reason.startswith("round 1 (train): 0 of 4 nodes answered, 3 are needed: ada, ben: code: app.py:7")


def test_one_killed_one_hanging_one_broken_one_poisoned() -> None:
    nodes = (*NODES, "eve", "fay")
    here = world(1, clients={"min_per_round": 2, "rejoin": 5})
    here.begin(*nodes)
    here.send(Lost("ada"))
    here.send(Failed("ben", BROKEN))
    here.submit("cyd", here.words() + np.uint32(1 << 28))
    here.answer("eve", 0.5)
    here.send(Fired("train/1/rejoin/ada"))
    here.answer("fay", 0.5)
    here.send(Fired("train/1/deadline"))
    outcome = here.outcomes[0]
    assert outcome is not None
    assert {node: f.cause for node, f in outcome.failures.items()} == {
        "ada": Cause.LOST,
        "ben": Cause.CODE,
        "cyd": Cause.REJECTED,
        "dee": Cause.TIMEOUT,
    }
    assert here.finish == Finish("completed", "")
    assert here.run.model == pytest.approx(np.full(7, 0.5))


def test_a_lost_node_comes_back_and_is_asked_again() -> None:
    here = world(clients={"rejoin": 7})
    here.begin("ada", "ben")
    assert here.send(Lost("ada")) == [Arm("train/1/rejoin/ada", 7.0)]
    assert here.send(Returned("ada")) == [Assign(here.round.tasks(["ada"]))]
    here.answer("ada")
    here.answer("ben")
    assert here.run.number == 2


def test_a_diverged_model_ends_the_run() -> None:
    here = world(2, strategy={"lr": 1e35}, aggregate={"bound": 65536})
    here.begin("ada")
    here.everybody(60000.0)
    assert here.finish == Finish("failed", "the model diverged in round 1; lower the learning rates")
    assert here.outcomes[0] is not None


# -------------------------------------------------------------------------------------------------- evaluation and its end


def phases(here: World, losses: list[float] | None = None, **answer: Any) -> list[tuple[str, int]]:
    """Run to the end with one answer for all; each round's phase and number."""
    seen = []
    losses = losses or []
    here.start()
    while here.run.status == "running":
        here.send(Roster(NODES))
        seen.append((str(here.run.phase), here.run.number))
        loss = {"loss": 10.0 * losses.pop(0)} if here.run.phase is Phase.EVALUATE and losses else {}
        here.everybody(0.0, 10.0, **loss, **(answer if here.run.phase is Phase.EVALUATE else {}))
    return seen


def test_evaluation_every_second_round_and_after_the_last() -> None:
    seen = phases(World(plan_of(strategy={"rounds": 5}, evaluate={"every": 2})))
    assert seen == [(phase, n) for n in range(1, 6) for phase in ("train", "evaluate") if phase == "train" or n in (2, 4, 5)]


@pytest.mark.parametrize(("every", "evaluated"), [(0, []), (1, [1, 2, 3]), (9, [3])])
def test_how_often_is_evaluated(every: int, evaluated: list[int]) -> None:
    seen = phases(World(plan_of(strategy={"rounds": 3}, evaluate={"every": every})))
    assert [number for phase, number in seen if phase == "evaluate"] == evaluated


def test_evaluation_does_not_touch_the_model_and_asks_its_own_selection() -> None:
    here = World(plan_of(clients={"select": 3}, evaluate={"select": 2, "metrics": ["accuracy"]}))
    here.begin()
    here.everybody(0.5)
    digest = here.run.digest
    here.send(Roster(NODES))
    assert (len(here.tasks), here.run.phase) == (2, Phase.EVALUATE)
    assert {(task.model, task.layout.size) for task in here.tasks.values()} == {(digest, 0)}
    here.everybody(weight=20, loss=5, accuracy=15)
    assert here.outcomes[0] is not None
    assert here.outcomes[0].metrics == {"loss": 0.25, "accuracy": 0.75}
    assert (here.run.digest, here.run.number, here.run.phase) == (digest, 2, Phase.TRAIN)


@pytest.mark.parametrize(("per_site", "shown"), [(True, {"ada": {"loss": 0.5}}), (False, {})])
def test_sites_are_shown_as_the_plan_says(per_site: bool, shown: dict[str, Any]) -> None:
    here = World(plan_of(evaluate={"per_site": per_site, "min_cell": 20}))
    here.begin("ada", "ben", "cid")
    here.everybody()
    here.send(Roster(("ada", "ben", "cid")))
    here.answer("ada", weight=20, loss=10)
    here.answer("ben", weight=19, loss=10)
    here.answer("cid", weight=1, loss=1)
    assert here.run.history[-1].sites == shown
    assert here.run.history[0].sites == {}


@pytest.mark.parametrize(
    ("tables", "weight", "train", "evaluate"),
    [
        ({}, 10, {"loss": 0.5}, {"loss": 0.5}),
        ({}, 9, {}, {}),
        ({"evaluate": {"min_cell": 5, "per_site": False}}, 5, {"loss": 0.5}, {"loss": 0.5}),
        ({"strategy": {"weighting": "equal"}}, 10, {}, {"loss": 0.5}),
        ({"strategy": {"weighting": "equal"}}, 9, {}, {}),
    ],
)
def test_what_one_small_site_answers_is_not_shown_as_that_of_all(
    tables: dict[str, Any], weight: float, train: dict[str, float], evaluate: dict[str, float]
) -> None:
    """Where all answers weigh one, of how many examples a single site tells is known to nobody but itself."""
    here, equal = World(plan_of(clients={"min_per_round": 1}, **tables)), "strategy" in tables
    here.begin("ada")
    here.everybody(weight=1 if equal else weight, loss=0.5 if equal else weight / 2)
    here.send(Roster(("ada",)))
    here.everybody(weight=weight, loss=weight / 2)
    assert [outcome.metrics for outcome in here.run.history] == [train, evaluate]
    assert [outcome.weight > 0 for outcome in here.run.history] == [bool(train), bool(evaluate)]
    assert here.run.history[1].sites == ({"ada": {"loss": 0.5}} if evaluate and "evaluate" not in tables else {})


def test_two_sites_that_weigh_the_same_are_shown_together() -> None:
    here = World(plan_of(clients={"min_per_round": 1}, strategy={"weighting": "equal"}))
    here.begin("ada", "ben")
    here.everybody(weight=1, loss=0.5)
    assert here.run.history[0].metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    ("losses", "rounds"),
    [
        ([5, 4, 3, 2, 1, 1], 6),
        ([5, 5, 5, 1, 1, 1], 3),
        ([3, 4, 2, 3, 2, 1], 5),
        ([1, 2, 0.5, 2, 0.25, 2], 6),
    ],
)
def test_early_stopping_by_loss(losses: list[float], rounds: int) -> None:
    here = World(plan_of(strategy={"rounds": 6}, evaluate={"patience": 2}))
    seen = phases(here, list(losses))
    assert seen[-1] == ("evaluate", rounds)
    reason = "no better loss in 2 evaluations" if rounds < 6 else ""
    assert (here.run.status, here.run.reason) == ("completed", reason)


@pytest.mark.parametrize(("aucs", "rounds"), [([0.5, 0.25, 0.75, 1.0], 4), ([0.75, 0.5, 0.25, 1.0], 3), ([1.0, 1.0, 1.0, 1.0], 3)])
def test_early_stopping_by_auc_where_more_is_better(aucs: list[float], rounds: int) -> None:
    here = World(plan_of(strategy={"rounds": 4}, evaluate={"metrics": ["auc"], "patience": 2, "monitor": "auc"}))
    here.start()
    for number in range(1, rounds + 1):
        here.send(Roster(NODES))
        here.everybody()
        here.send(Roster(NODES))
        scores = np.zeros(2 * BINS)
        scores[128], scores[BINS + 100], scores[BINS + 200] = 1.0, 4 * aucs[number - 1], 4 * (1 - aucs[number - 1])
        here.everybody(auc=scores.tolist())
        assert here.run.history[-1].metrics["auc"] == pytest.approx(aucs[number - 1])
    assert here.run.status == "completed"


def test_an_auc_that_is_never_defined_stops_nothing() -> None:
    here = World(plan_of(strategy={"rounds": 4}, evaluate={"metrics": ["auc"], "patience": 1, "monitor": "auc"}))
    assert phases(here)[-1] == ("evaluate", 4)
    assert here.run.reason == ""
    assert "auc" not in here.run.history[-1].metrics


# --------------------------------------------------------------------------------------------------- stop, pause and resume


def in_gathering(here: World) -> None:
    assert here.run.asked == ""


def in_init(here: World) -> None:
    here.send(Roster(NODES))


def in_training(here: World) -> None:
    here.begin()
    here.answer("ada", 1.0)


def in_evaluation(here: World) -> None:
    here.begin()
    here.everybody()
    here.send(Roster(NODES))


PHASES = [in_gathering, in_init, in_training, in_evaluation]


def anywhere() -> World:
    return World(plan_of(strategy={"rounds": 2}))


@pytest.mark.parametrize("reach", PHASES)
def test_stop_ends_the_run_and_releases_whoever_works(reach: Any) -> None:
    here = anywhere()
    reach(here)
    busy = sorted(here.run.round.places) if here.run.round else [here.run.asked] if here.run.asked else []
    done = list(here.run.round.answered()) if here.run.round else []
    here.send(Stop("the coordinator had enough"))
    assert here.finish == Finish("stopped", "the coordinator had enough")
    assert sorted(here.released) == sorted(set(busy) - set(done))
    assert (here.run.status, here.run.round, here.run.asked) == ("stopped", None, "")


@pytest.mark.parametrize("reach", PHASES)
def test_a_finished_run_never_moves(reach: Any) -> None:
    here = anywhere()
    reach(here)
    here.send(Stop("over"))
    before = bits(here.run)
    events: list[Event] = [Roster(NODES), Resume(), Pause(), Stop("again"), Fired("train/1/deadline"), Fired("init/0/gather"), Lost("ada")]
    for event in events:
        assert here.send(event) == []
    assert bits(here.run) == before
    assert here.run.begin() == []


@pytest.mark.parametrize("reach", PHASES)
def test_a_pause_lets_the_open_step_end_and_begins_no_other(reach: Any) -> None:
    here = anywhere()
    reach(here)
    asked = [node for effect in (here.run.round.requests() if here.run.round else []) if isinstance(effect, Assign) for node in effect.tasks.nodes]
    assert here.send(Pause()) == []
    if here.run.asked:
        here.initialize()
    for node in asked:
        here.answer(node)
    assert here.of(Gather) == []
    assert here.send(Roster(NODES)) == []
    number, phase = here.run.number, here.run.phase
    assert here.send(Resume()) == [Gather(1), Arm(f"{phase}/{number}/gather", 600.0)]
    here.send(Roster(NODES))
    assert here.of(Assign)


@pytest.mark.parametrize("reach", [in_init, in_training, in_evaluation])
def test_resume_within_a_step_asks_for_nothing_new(reach: Any) -> None:
    here = anywhere()
    reach(here)
    here.send(Pause())
    assert here.send(Resume()) == []
    assert not here.run.paused


def test_a_paused_run_is_not_failed_by_the_wait_for_nodes() -> None:
    here = world()
    here.send(Pause())
    assert here.send(Fired("init/0/gather")) == []
    assert here.run.status == "running"
    here.send(Resume())
    here.send(Fired("init/0/gather"))
    assert here.run.status == "failed"


# ------------------------------------------------------------------------------------------------ checkpoints and replay


STRATEGIES = [
    {"name": "fedavg"},
    {"name": "fedavg", "weighting": "equal", "clip_norm": 1.0},
    {"name": "fedavgm"},
    {"name": "fedadam"},
    {"name": "fedyogi"},
    {"name": "fedadagrad"},
]


def script(here: World, number: int) -> None:
    """One step of a long run that only depends on its number, with a failure and a straggler now and then."""
    if here.run.round is None and not here.run.asked:
        here.send(Roster(NODES))
        return
    if here.run.asked:
        if number < 3:
            here.send(Failed(here.run.asked, BROKEN))
        else:
            here.initialize(vector(*np.linspace(-1, 1, 7).tolist()))
        return
    current = here.round
    pending = [node for node, place in current.places.items() if place == "asked"]
    rng = np.random.default_rng(number)
    weight = 1.0 if here.plan.strategy.weighting == "equal" else float(rng.integers(1, 500))
    if number % 11 == 5:
        here.send(Failed(pending[0], BROKEN))
    elif number % 7 == 3:
        here.send(Lost(pending[0]))
    else:
        here.answer(pending[0] if pending else NODES[0], rng.normal(size=7).astype(np.float32), weight, loss=weight * rng.random())
    if here.run.round is current and not any(place == "asked" for place in current.places.values()):
        here.send(Fired(current.timer()))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: "-".join(map(str, s.values())))
def test_a_crash_after_any_event_continues_to_the_same_bits(strategy: dict[str, Any]) -> None:
    here = World(plan_of(strategy={"rounds": 3, **strategy}, clients={"min_per_round": 1}, evaluate={"every": 2}))
    twin = World(here.plan)
    for number in range(200):
        if here.run.status != "running":
            break
        script(here, number)
        script(twin, number)
        twin = twin.crash()
        assert bits(twin.run) == bits(here.run)
    assert here.run.status == "completed"
    assert len(here.run.history) == 5
    assert bits(here.run)["slots"] == bits(twin.run)["slots"]


def test_a_restored_run_asks_for_the_same_things() -> None:
    here = world(2)
    assert here.crash().run.begin() == [Gather(1), Arm("init/0/gather", 600.0)]
    here.send(Roster(NODES))
    assert here.crash().run.begin() == here.effects
    here.initialize()
    assert here.crash().run.begin() == here.effects[1:]
    here.send(Roster(NODES))
    opened = here.effects
    again = here.crash().run.begin()
    assert again == opened
    here.answer("ada")
    assert [node for e in here.crash().run.begin() if isinstance(e, Assign) for node in e.tasks.nodes] == ["ben", "cyd", "dee"]


def test_a_checkpoint_holds_the_whole_run() -> None:
    here = World(plan_of(strategy={"name": "fedadam", "rounds": 1}, clients={"min_per_round": 1}))
    here.begin()
    here.answer("ada", 0.5)
    here.send(Failed("ben", Failure(Cause.MEMORY, "out of memory", "app.py:1", "lower train.batch_size", "in f\nin g")))
    here.send(Fired("train/1/deadline"))
    facts, vectors = here.run.snapshot()
    assert sorted(vectors) == ["model", "slot/first", "slot/second"]
    back = Run.restore(here.plan, here.run.strategy, json.loads(json.dumps(facts)), vectors)
    assert bits(back) == bits(here.run)
    assert back.history[0].failures["ben"].cause is Cause.MEMORY


def test_a_run_goes_on_alike_with_its_vectors_held_elsewhere() -> None:
    ends = []
    for moved in (False, True):
        here = World(plan_of(strategy={"name": "fedadam", "rounds": 3}, clients={"min_per_round": 2}, evaluate={"every": 0}))
        here.start("ada", "ben")
        for delta in (0.5, -0.25, 0.125):
            if moved:
                vectors = {name: np.frombuffer(vector.tobytes(), np.float32) for name, vector in here.run.snapshot()[1].items()}
                here.run.hold(vectors)
                assert here.run.model is vectors["model"]
                assert here.run.slots["first"] is vectors["slot/first"]
            here.send(Roster(("ada", "ben")))
            here.everybody(delta)
        assert here.run.status == "completed"
        ends.append(bits(here.run))
    assert ends[0] == ends[1]


def test_a_run_that_was_not_begun_can_be_kept_too() -> None:
    here = world()
    facts, vectors = here.run.snapshot()
    assert vectors == {}
    assert bits(Run.restore(here.plan, here.run.strategy, json.loads(json.dumps(facts)), vectors)) == bits(here.run)


def test_no_checkpoint_while_a_round_is_open() -> None:
    here = world()
    here.begin()
    with pytest.raises(ProtocolError, match="^a checkpoint was asked for while a round is open$"):
        here.run.snapshot()


def test_a_round_needs_a_first_model() -> None:
    here = world()
    here.run.phase, here.run.number = Phase.TRAIN, 1
    with pytest.raises(ProtocolError, match="^a round was opened before the first model was there$"):
        here.run.handle(Roster(NODES))


def test_an_event_out_of_place_changes_nothing() -> None:
    here = world()
    before = bits(here.run)
    events: list[Event] = [Answered("ada", "x", np.zeros(1, np.uint32)), Lost("ada"), Returned("ada"), Failed("ada", BROKEN), Fired("train/1/gather")]
    for event in events:
        assert here.send(event) == []
    assert bits(here.run) == before
