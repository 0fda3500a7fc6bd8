"""From a plan's promise to steps and noise."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import PlanError
from fedscale.learner import Training
from fedscale.privacy import schedule as module
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.dp import DP
from fedscale.privacy.events import Spend
from fedscale.privacy.schedule import Schedule, schedule

PROMISE = DP(epsilon=4.0, delta=1e-5, clip=0.7)


def cost(planned: Schedule, rounds: int) -> float:
    return epsilon([planned.spend] * rounds, PROMISE.delta)


def test_dp_sgd_at_a_site() -> None:
    planned = schedule(PROMISE, Training(epochs=2, batch_size=32), 5, 400)
    assert (planned.sampling_rate, planned.steps, planned.clip, planned.unit) == (0.08, 25, 0.7, "record")
    assert planned.spend == Spend("poisson_subsampled_gaussian", planned.noise_multiplier, 0.08, 25)
    assert 3.999 < cost(planned, 5) <= 4.0


def test_more_units_need_less_noise() -> None:
    few, many = (schedule(PROMISE, Training(max_steps=5), 4, units) for units in (100, 1000))
    assert many.noise_multiplier < few.noise_multiplier
    assert (few.steps, many.steps) == (4, 5)


def test_a_site_smaller_than_a_batch_takes_everybody_in_each_step() -> None:
    planned = schedule(PROMISE, Training(epochs=3, batch_size=64), 2, 10)
    assert (planned.sampling_rate, planned.steps) == (1.0, 3)


@given(st.integers(1, 50), st.integers(1, 300), st.integers(1, 3000))
def test_steps_are_epochs_over_the_rate_rounded_up(epochs: int, batch: int, units: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "noise_multiplier", lambda *_, **__: 1.0)
        planned = schedule(PROMISE, Training(epochs=epochs, batch_size=batch), 1, units)
    assert planned.steps == math.ceil(Fraction(epochs) / min(Fraction(1), Fraction(batch, units)))


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: schedule(PROMISE, Training(), 0, 10), "at least one round"),
        (lambda: schedule(PROMISE, Training(), 1, 0), "nothing to sample from"),
    ],
)
def test_an_impossible_schedule_is_refused(ask: object, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        ask()  # type: ignore[operator]
