"""Privacy in the node's half of a round: what is refused, what leaves, and how much noise is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedscale.data import Dataset, from_arrays
from fedscale.errors import AppError, PlanError, UpdateRejected
from fedscale.learner import Learner, Phase, Private, Result, Work
from fedscale.plan import Plan
from fedscale.privacy.units import units_of
from fedscale.ring import WORD, add
from fedscale.strategy import fed_avg
from fedscale.task import FirstModel, Task, layout_for, perform, portion, private_for
from fedscale.task import noise_of as drawn
from fedscale.vector import Schema
from tests.fedscale.world import plan_of

SIZE = 120_000
KEY = bytes(range(32))
SECAGG: dict[str, Any] = {"secagg": {"enabled": True}, "clients": {"min_per_round": 4}}


class Obedient:
    """Says that it keeps to privacy, and answers by a function."""

    def __init__(self, answer: Callable[[Work], Any]) -> None:
        self.answer = answer

    def run(self, work: Work) -> Result:
        result: Result = self.answer(work)
        return result

    def require_private(self, unit: str) -> None:
        """Any unit will do."""


class Ignorant:
    """Has never heard of privacy."""

    def run(self, work: Work) -> Result:
        return constant(0.5)(work)


def constant(value: float, examples: int = 20, *, kept: bool = True) -> Callable[[Work], Result]:
    def answer(work: Work) -> Result:
        change = np.full(SIZE, value, np.float32)
        start = np.zeros(SIZE, np.float32) if work.arrays is None else work.arrays["w"]
        shared = work.private is not None and work.private.way == "union"
        return Result({"w": change if shared else start + change}, examples, {}, private=work.private if kept else None)

    return answer


def plan(unit: str = "record", **tables: Any) -> Plan:
    privacy = {"epsilon": 4.0, "delta": 1e-5, "unit": unit} | tables.pop("privacy", {})
    quiet = {"evaluate": {"every": 0}}
    return plan_of(**quiet, **tables, privacy=privacy)


def data(rows: int = 40) -> Dataset:
    return from_arrays(np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), np.arange(rows) % 2)


def answered(how: Plan, learner: Learner, private: Private | None, phase: Phase = Phase.TRAIN, node: str = "ada") -> Any:
    schema = Schema.of({"w": np.zeros(SIZE, np.float32)})
    task = Task(node, phase, 3, layout_for(how, phase, 0 if phase is Phase.INIT else SIZE, 4), None if phase is Phase.INIT else schema, "d")
    model = None if phase is Phase.INIT else np.zeros(SIZE, np.float32)
    return perform(task, how, how.strategy.build(), learner, data(), model, private=private)


def noise_of(how: Plan, value: float = 0.0, rows: int = 40) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Private]:
    """What is in an answer on the integer grid beyond its value."""
    private = private_for(how, Phase.TRAIN, data(rows), KEY)
    assert private is not None
    words = answered(how, Obedient(constant(value)), private)
    return words[:SIZE].view(np.int32).astype(np.int64), private


def test_nothing_is_trained_without_the_privacy_a_plan_asks_for() -> None:
    for how in (plan(), plan("node", **SECAGG), plan(**SECAGG)):
        with pytest.raises(PlanError, match="would train without"):
            answered(how, Obedient(constant(0.1)), None)


def test_privacy_that_no_plan_asks_for_is_an_error_too() -> None:
    with pytest.raises(PlanError, match="would train without"):
        answered(plan_of(), Obedient(constant(0.1)), private_for(plan(), Phase.TRAIN, data()))


@pytest.mark.parametrize("phase", [Phase.INIT, Phase.TRAIN])
def test_a_learner_that_has_never_heard_of_privacy_is_refused_before_it_works(phase: Phase) -> None:
    how = plan()
    with pytest.raises(AppError, match="does not know how to hide a record") as raised:
        answered(how, Ignorant(), private_for(how, phase, data()), phase)
    assert "require_private" in raised.value.hint


def test_a_learner_that_does_not_say_it_kept_to_privacy_is_not_believed() -> None:
    how = plan()
    private = private_for(how, Phase.TRAIN, data())
    assert private is not None
    with pytest.raises(AppError, match="did not keep to the privacy"):
        answered(how, Obedient(constant(0.1, kept=False)), private)
    louder = Obedient(lambda work: replace(constant(0.1)(work), private=replace(private, noise_multiplier=1e-9)))
    with pytest.raises(AppError, match="did not keep to the privacy"):
        answered(how, louder, private)


def test_any_learner_may_be_hidden_as_a_whole_node() -> None:
    how = plan("node", **SECAGG)
    words = answered(how, Ignorant(), private_for(how, Phase.TRAIN, "anything"))
    assert words.dtype == WORD
    assert isinstance(answered(how, Ignorant(), None, Phase.INIT), FirstModel)


def test_what_leaves_says_nothing_of_loss_and_examples() -> None:
    for how in (plan(), plan(**SECAGG), plan("node", **SECAGG)):
        layout = layout_for(how, Phase.TRAIN, SIZE, 4)
        private = private_for(how, Phase.TRAIN, data(), KEY)
        for examples in (1, 5000):
            weight, sums = layout.tail(answered(how, Obedient(constant(1e-4, examples)), private))
            assert (weight, sums) == (1.0, {})


@pytest.mark.parametrize(("unit", "clip"), [("record", 1.0), ("node", 2.0)])
def test_the_noise_in_an_answer_is_its_share_of_what_is_claimed(unit: str, clip: float) -> None:
    how = plan(unit, privacy={"clip": clip}, **SECAGG)
    found, private = noise_of(how)
    exponent = layout_for(how, Phase.TRAIN, SIZE, 4).format.exponent
    reach = clip if unit == "node" else clip * how.train.optimizer.lr / how.train.batch_size
    claimed = private.noise_multiplier * (reach * 2.0**exponent + SIZE**0.5) / 4**0.5
    assert found.std() == pytest.approx(claimed, rel=0.01)
    assert abs(found.mean()) < 5 * claimed / SIZE**0.5
    assert abs(found).max() < 0.5 * how.noisy_bound(how.privacy) * 2.0**exponent  # type: ignore[arg-type]  # there is one


def test_four_shares_together_are_the_noise_of_the_promise() -> None:
    how = plan("node", **SECAGG)
    layout, total = layout_for(how, Phase.TRAIN, SIZE, 4), np.zeros(SIZE, WORD)
    each = [private_for(how, Phase.TRAIN, data(), bytes([site]) * 32) for site in range(4)]
    for private in each:
        add(total, answered(how, Obedient(constant(0.0)), private)[:SIZE])
    assert each[0] is not None
    assert layout.format.decode(total).std() == pytest.approx(each[0].noise_multiplier * 1.0, rel=0.01)


@pytest.mark.parametrize("sites", [1, 9, 64])
def test_the_shares_of_several_sites_may_be_drawn_as_one(sites: int) -> None:
    how = plan("node", **SECAGG)
    private = private_for(how, Phase.TRAIN, data(), KEY)
    task = Task("ada", Phase.TRAIN, 3, layout_for(how, Phase.TRAIN, SIZE, 4), Schema.of({"w": np.zeros(SIZE, np.float32)}), "d")
    one, many = (shares_of(task, how, private, count) for count in (1, sites))
    assert one.std() * sites**0.5 == pytest.approx(many.std(), rel=0.01)
    assert np.mean(many**4) / many.var() ** 2 == pytest.approx(3.0, rel=0.05)
    assert np.array_equal(one, noise_of(how)[0])


def shares_of(task: Task, how: Plan, private: Private | None, sites: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    words = drawn(task, how, private, sites)
    assert words is not None
    return words.view(np.int32).astype(np.float64)


def test_only_noise_in_shares_is_a_sites_own() -> None:
    tree = {"mechanism": "ftrl", "tree_rounds": 1}
    for how in (plan_of(), plan(), plan("node", privacy=tree)):
        task = Task("ada", Phase.TRAIN, 3, layout_for(how, Phase.TRAIN, SIZE, 4), None, "d")
        assert drawn(task, how, private_for(how, Phase.TRAIN, data(), KEY)) is None


def test_a_site_that_colludes_is_not_counted_on_for_noise() -> None:
    deviations = []
    for adversarial, shares in ((0.0, 10), (0.3, 7)):
        how = plan("node", secagg={"enabled": True, "adversarial": adversarial}, clients={"min_per_round": 10})
        assert how.shares == shares
        deviations.append(noise_of(how)[0].std() / 2.0 ** layout_for(how, Phase.TRAIN, SIZE, 4).format.exponent)
    assert deviations[1] / deviations[0] == pytest.approx((10 / 7) ** 0.5, rel=0.01)


def test_a_node_moves_the_sum_by_at_most_the_clip_whatever_it_learns() -> None:
    how = plan("node", **SECAGG)
    private = private_for(how, Phase.TRAIN, data(), KEY)
    layout = layout_for(how, Phase.TRAIN, SIZE, 4)
    zero = answered(how, Obedient(constant(0.0)), private)
    for change in (1e-6, 1.0, 1e30):
        moved = (answered(how, Obedient(constant(change, examples=5000)), private)[:SIZE] - zero[:SIZE]).view(np.int32).astype(np.float64)
        assert np.linalg.norm(moved) <= 2.0**layout.format.exponent + SIZE**0.5
    with pytest.raises(UpdateRejected, match="not finite"):
        answered(how, Obedient(constant(np.nan)), private)


def test_hospital_sizes_have_no_say() -> None:
    """Sizes of 5000, 800 and 700 under fixed noise would make a claimed epsilon of 4 a true one of 40."""
    how = plan("node", **SECAGG)
    private = private_for(how, Phase.TRAIN, data(), KEY)
    one, *others = (answered(how, Obedient(constant(0.01, examples)), private) for examples in (5000, 800, 700))
    assert all(np.array_equal(one, other) for other in others)


def test_a_site_whose_gradients_may_pass_the_bound_is_told_before_it_trains() -> None:
    how = plan(aggregate={"bound": 0.01}, **SECAGG)
    with pytest.raises(PlanError, match="may not fit") as raised:
        private_for(how, Phase.TRAIN, data(4000))
    assert raised.value.where == "train.batch_size"


def test_noise_that_does_not_fit_into_the_ring_is_found_when_the_plan_is_read() -> None:
    crowd: dict[str, Any] = {"secagg": {"enabled": True, "bits": 24}, "clients": {"select": 2000, "min_per_round": 3}}
    with pytest.raises(PlanError, match="ring is too short"):
        plan("node", privacy={"epsilon": 0.01}, strategy={"rounds": 100_000}, **crowd)


@pytest.mark.parametrize(
    ("strategy", "where"),
    [({"name": "fedbuff"}, "strategy.name"), ({"name": "fedavg", "clip_norm": 1.0}, "strategy")],
)
def test_strategies_that_cannot_run_with_privacy(strategy: dict[str, Any], where: str) -> None:
    tables: dict[str, Any] = SECAGG if "clip_norm" in strategy else {}
    with pytest.raises(PlanError) as raised:
        plan(strategy=strategy, **tables)
    assert where in (raised.value.where, raised.value.where.split(":")[-1])


def test_a_strategy_may_clip_what_is_private_already() -> None:
    assert plan(strategy={"name": "fedavg", "clip_norm": 1.0}).strategy.build().transforms == fed_avg(clip_norm=1.0).transforms


def test_rows_fall_into_training_or_evaluation_by_themselves() -> None:
    how = plan_of(privacy={"epsilon": 1.0, "delta": 1e-5, "metrics": "exact"})
    whole, less = data(200), data(200).take(np.delete(np.arange(200), 17))
    train, held = (portion(how, phase, whole) for phase in (Phase.TRAIN, Phase.EVALUATE))
    assert len(train) + len(held) == 200
    assert 20 <= len(held) <= 60
    assert not set(map(tuple, train.x)) & set(map(tuple, held.x))
    for phase, part in ((Phase.TRAIN, train), (Phase.EVALUATE, held)):
        gone = set(map(tuple, part.x)) - set(map(tuple, portion(how, phase, less).x))
        assert gone <= {tuple(whole.x[17])}, "one row less changes the part of no other"


def test_all_rows_of_a_patient_fall_on_one_side() -> None:
    how = plan_of(privacy={"epsilon": 1.0, "delta": 1e-5, "unit": "patient", "metrics": "exact"})
    grouped = replace(data(200), groups=np.arange(200) // 4)
    train, held = (portion(how, phase, grouped) for phase in (Phase.TRAIN, Phase.EVALUATE))
    assert not set(train.groups) & set(held.groups)
    assert units_of(train, "patient") + units_of(held, "patient") == 50


def test_a_moving_clip_hides_change_and_bit_with_one_noise() -> None:
    how = plan("node", privacy={"clip": 2.0, "clip_quantile": 0.5}, **SECAGG)
    private, schema = private_for(how, Phase.TRAIN, data(), KEY), Schema.of({"w": np.zeros(SIZE, np.float32)})
    layout = layout_for(how, Phase.TRAIN, SIZE, 4, 0.5)
    task, quiet = Task("ada", Phase.TRAIN, 3, layout, schema, "d"), np.zeros(SIZE, np.float32)

    def words(value: float) -> Any:
        done = perform(task, how, how.strategy.build(), Obedient(constant(value)), data(), quiet, private=private)
        assert not isinstance(done, FirstModel)
        return done[: SIZE + 1].view(np.int32).astype(np.int64)

    assert private is not None
    scale, silent = 2.0**layout.format.exponent, words(0.0)
    claimed = private.noise_multiplier * (0.5 * 1.04**0.5 * scale + (SIZE + 1) ** 0.5) / 4**0.5
    assert silent[:SIZE].std() == pytest.approx(claimed, rel=0.01)
    # A change within the clip says so, one far beyond says the opposite, and it has the norm of the round's clip and not of the plan's.
    moved = (words(1.0) - silent) / scale
    assert np.linalg.norm(moved[:SIZE]) == pytest.approx(0.5, rel=0.01)
    assert moved[SIZE] == pytest.approx(-0.2, abs=1e-3)
    assert abs((words(1e-6) - silent)[SIZE]) <= 1


def test_nodes_of_a_tree_send_their_clipped_change_without_noise_of_their_own() -> None:
    how = plan("node", privacy={"clip": 2.0, "mechanism": "ftrl"}, clients={"select": 2})
    private, layout = private_for(how, Phase.TRAIN, data(), KEY), layout_for(how, Phase.TRAIN, SIZE, 4)
    words = answered(how, Obedient(constant(1.0, examples=5000)), private)
    weight, sums = layout.tail(words)
    assert np.linalg.norm(layout.format.decode(words[:SIZE])) == pytest.approx(2.0, rel=1e-4)
    assert (weight, sums) == (1.0, {})
