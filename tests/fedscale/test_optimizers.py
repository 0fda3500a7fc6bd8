"""Each step against the formulas of its paper in float64, written out coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fedscale.optimizers import Optimizer, Slots, adagrad, adam, sgd, yogi
from fedscale.vector import PIECE, Vector
from tests.fedscale.world import vector

LR, B1, B2, TAU = 0.1, 0.9, 0.99, 1e-3
Second = Callable[[float, float], float]


def adaptive(deltas: list[float], beta1: float, second: Second, correction: Callable[[int], float] = lambda _: 1.0) -> list[float]:
    """Algorithm 2 of Reddi et al. 2021 for one coordinate."""
    model, first, moment, path = 0.0, 0.0, 0.0, []
    for at, delta in enumerate(deltas, 1):
        first = beta1 * first + (1 - beta1) * delta
        moment = second(moment, delta**2)
        model += LR * correction(at) * first / (math.sqrt(moment) + TAU)
        path.append(model)
    return path


def bias(at: int) -> float:
    return math.sqrt(1 - B2 ** (at + 1)) / (1 - B1 ** (at + 1))


def yogi_second(moment: float, square: float) -> float:
    return moment - (1 - B2) * square * (1 if moment > square else -1 if moment < square else 0)


CASES: dict[str, tuple[Optimizer, Callable[[list[float]], list[float]]]] = {
    "adam": (adam(LR, B1, B2, TAU), lambda d: adaptive(d, B1, lambda v, s: B2 * v + (1 - B2) * s, bias)),
    "yogi": (yogi(LR, B1, B2, TAU), lambda d: adaptive(d, B1, yogi_second)),
    "adagrad": (adagrad(LR, TAU), lambda d: adaptive(d, 0.0, lambda v, s: v + s)),
}


def path(optimizer: Optimizer, deltas: list[Vector], model: Vector) -> list[Vector]:
    slots, seen = optimizer.init(model), []
    for number, delta in enumerate(deltas, 1):
        model, slots = optimizer.update(delta, model, slots, number)
        assert set(slots) == set(optimizer.slots)
        assert all(v.dtype == np.float32 and v.shape == model.shape for v in (model, *slots.values()))
        seen.append(model)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_the_adaptive_steps_are_the_papers(name: str) -> None:
    optimizer, reference = CASES[name]
    deltas = np.random.default_rng(3).normal(0, 0.5, (8, 20)).astype(np.float32)
    ours = np.array(path(optimizer, list(deltas), np.zeros(20, np.float32)))
    exact = np.array([reference(column.tolist()) for column in deltas.T.astype(np.float64)]).T
    assert np.abs(ours - exact).max() <= 1e-6 * max(1.0, np.abs(exact).max())


def test_plain_averaging_adds_the_change() -> None:
    assert sgd().slots == ()
    model, slots = sgd().update(vector(0.5, -1), vector(1, 2), {}, 1)
    assert (model.tolist(), slots) == ([1.5, 1.0], {})


def test_the_step_length_scales_the_change() -> None:
    assert sgd(0.5).update(vector(2.0), vector(1.0), {}, 1)[0].tolist() == [2.0]


def test_momentum_remembers_the_changes() -> None:
    seen = path(sgd(0.5, 0.5), [vector(4.0), vector(0.0), vector(8.0)], vector(0.0))
    assert [model.tolist() for model in seen] == [[2.0], [3.0], [7.5]]


def test_state_begins_at_zero() -> None:
    slots = adam(LR, B1, B2, TAU).init(vector(1, 2))
    assert {name: slot.tolist() for name, slot in slots.items()} == {"first": [0, 0], "second": [0, 0]}


@pytest.mark.parametrize("optimizer", [sgd(0.5, 0.9), *(case[0] for case in CASES.values())])
def test_a_step_is_pure(optimizer: Optimizer) -> None:
    delta, model, slots = vector(1, -2), vector(3, 4), optimizer.init(vector(3, 4))
    copies = delta.copy(), model.copy(), {name: slot.copy() for name, slot in slots.items()}
    first, second = (optimizer.update(delta, model, slots, 1) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert (delta.tolist(), model.tolist()) == (copies[0].tolist(), copies[1].tolist())
    assert all((slots[name] == copies[2][name]).all() for name in slots)


@pytest.mark.parametrize("optimizer", [case[0] for case in CASES.values()])
def test_no_change_moves_nothing(optimizer: Optimizer) -> None:
    model = vector(1, -2)
    assert optimizer.update(vector(0, 0), model, optimizer.init(model), 1)[0].tolist() == [1, -2]


@pytest.mark.parametrize("optimizer", [sgd(0.7), sgd(1.0, 0.9), *(case[0] for case in CASES.values())])
def test_a_step_in_pieces_has_the_bits_of_one_in_one_go_and_takes_the_place_of_the_change(optimizer: Optimizer) -> None:
    rng, size = np.random.default_rng(5), 2 * PIECE + 11
    model, deltas = rng.normal(size=size).astype(np.float32), rng.normal(0, 0.1, (3, size)).astype(np.float32)
    whole = (model, optimizer.init(model))
    apart = (model, optimizer.init(model))
    for number, delta in enumerate(deltas, 1):
        whole = optimizer.update(delta.copy(), *whole, number)
        before, given = apart[0].copy(), delta.copy()
        held = apart[0]
        apart = optimizer.step(given, *apart, number)
        assert apart[0] is given
        assert np.array_equal(held, before)
        assert whole[0].tobytes() == apart[0].tobytes()
        assert {n: v.tobytes() for n, v in whole[1].items()} == {n: v.tobytes() for n, v in apart[1].items()}


def test_a_rule_that_looks_at_the_whole_is_given_the_whole_and_a_change_that_is_lent_is_left_alone() -> None:
    def towards(delta: Vector, model: Vector, slots: Slots, _: int) -> tuple[Vector, Slots]:
        return model + delta / np.float32(np.abs(delta).max()), slots

    delta, model = np.linspace(0, 4, PIECE + 2, dtype=np.float32), np.zeros(PIECE + 2, np.float32)
    assert Optimizer((), towards).step(delta, model, {}, 1)[0][[0, -1]].tolist() == [0, 1]
    delta.flags.writeable = False
    assert sgd().step(delta, model, {}, 1)[0][-1] == 4
    assert delta[-1] == 4
