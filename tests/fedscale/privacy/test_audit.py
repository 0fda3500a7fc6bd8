"""What an audit computes: canaries, the alarm, the certificate, and the two attacks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedscale.errors import ConfigError
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.audit.attacks import Records, inverted, likeness, membership
from fedscale.privacy.audit.canaries import ALARM, canaries, estimate, guesses, lower_bound, scores
from fedscale.privacy.events import Spend

DELTA = 1e-5


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_canaries_are_orthogonal_and_of_norm_one() -> None:
    planted = canaries(100, 256, chance())
    np.testing.assert_allclose(planted @ planted.T, np.eye(100), atol=1e-5)
    assert not np.array_equal(planted, canaries(100, 256, chance(1)))
    # In a random orientation, so that no coordinate stands out.
    assert np.abs(planted.sum(axis=0)).max() < 5 * math.sqrt(100 / 256)


@pytest.mark.parametrize(("count", "size"), [(256, 256), (0, 256), (10, 100)])
def test_canaries_that_do_not_fit_are_refused(count: int, size: int) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        canaries(count, size, chance())


def test_scores_tell_who_is_in() -> None:
    planted = canaries(10, 64, chance())
    inside = np.arange(10) < 4
    released = (planted[inside] * 2.5).sum(axis=0)
    assert np.allclose(scores(released, planted, 2.5), inside, atol=1e-5)


def test_an_honest_release_is_estimated_and_not_flagged() -> None:
    found = estimate(1 + 2 * chance().standard_normal(4000), 2.0, DELTA)
    assert (found.signal, found.noise) == (pytest.approx(1.0, abs=0.1), pytest.approx(2.0, rel=0.05))
    assert found.epsilon == pytest.approx(epsilon([Spend("gaussian", 2.0)], DELTA), rel=0.15)
    assert found.flags == ()
    assert found.error == pytest.approx(2 / math.sqrt(8000), rel=0.05)


@pytest.mark.parametrize(
    ("signal", "noise", "flags"),
    [
        (1.0, 1.0, ("noise",)),
        (2.0, 2.0, ("signal",)),
        (4.0, 0.5, ("signal", "noise")),
        (1.0, 2.4, ()),
        (0.5, 2.0, ()),
        (1.0, 0.0, ("noise",)),
        (1.0, 9.0, ("spread",)),
    ],
)
def test_what_differs_from_the_claim_is_flagged_by_what_it_is(signal: float, noise: float, flags: tuple[str, ...]) -> None:
    assert estimate(signal + noise * chance().standard_normal(2000), 2.0, DELTA).flags == flags


def test_a_release_without_noise_has_no_epsilon() -> None:
    found = estimate(np.ones(100) + 1e-9 * chance().standard_normal(100), 1.0, DELTA)
    assert math.isinf(found.epsilon)
    assert found.to_json()["epsilon"] is None
    assert estimate(np.zeros(100), 1.0, DELTA).epsilon < 1e-3


def test_the_alarm_is_silent_on_almost_all_honest_releases() -> None:
    draw = chance(7)
    alarms = sum(bool(estimate(1 + 3 * draw.standard_normal(500), 3.0, DELTA).flags) for _ in range(300))
    # Four standard errors on two one-sided tests: about one in 15,000.
    assert ALARM == 4.0
    assert alarms <= 1


def test_guesses_take_the_highest_for_in_and_the_lowest_for_out() -> None:
    inside = np.array([True, True, False, False, True, False])
    found = np.array([9.0, 8.0, -5.0, 7.0, -9.0, 0.0])
    assert guesses(found, inside, 1) == 1
    assert guesses(found, inside, 2) == 3
    assert guesses(found, inside, 3) == 4


@pytest.mark.parametrize(
    ("right", "made", "delta", "expected"),
    [
        # All of r guesses right under pure privacy: (e^eps / (1 + e^eps))^r = 0.05.
        (20, 20, 0.0, math.log(0.05 ** (1 / 20) / (1 - 0.05 ** (1 / 20)))),
        (100, 100, 0.0, math.log(0.05 ** (1 / 100) / (1 - 0.05 ** (1 / 100)))),
        (50, 100, 0.0, 0.0),
        (10, 20, 0.0, 0.0),
    ],
)
def test_the_certificate_in_closed_form(right: int, made: int, delta: float, expected: float) -> None:
    assert lower_bound(right, made, 1000, delta) == pytest.approx(expected, abs=2e-4)


def test_the_certificate_weakens_with_delta_and_confidence_and_grows_with_what_is_right() -> None:
    assert lower_bound(95, 100, 1000, 1e-5) < lower_bound(95, 100, 1000, 0.0)
    assert lower_bound(95, 100, 1000, 0.0, confidence=0.999) < lower_bound(95, 100, 1000, 0.0)
    bounds = [lower_bound(right, 100, 1000, 1e-6) for right in range(55, 101, 5)]
    assert bounds == sorted(bounds)
    assert lower_bound(100, 100, 1000, 0.5) == 0.0


def test_the_certificate_of_randomised_response_is_below_its_epsilon_as_often_as_stated() -> None:
    truth, draw = 1.5, chance(3)
    keep = 1 / (1 + math.exp(-truth))
    beyond = sum(lower_bound(int((draw.random(200) < keep).sum()), 200, 200, 0.0) > truth for _ in range(150))
    assert beyond <= 150 * 0.05 + 4 * math.sqrt(150 * 0.05)
    assert lower_bound(round(200 * keep), 200, 200, 0.0) > truth / 2


def test_gradients_are_those_of_the_logistic_loss() -> None:
    records = Records.made_up(5, 3, chance())
    step = 1e-4

    def loss(weights: np.ndarray, row: int) -> float:
        logit = float(weights[:-1] @ records.features[row] + weights[-1])
        return math.log1p(math.exp(-logit if records.labels[row] else logit))

    for row, gradient in enumerate(records.gradients()):
        numeric = [(loss(step * unit, row) - loss(-step * unit, row)) / (2 * step) for unit in np.eye(4)]
        assert np.allclose(gradient, numeric, atol=1e-5)


def test_membership_is_certain_in_a_plain_sum_and_a_guess_in_noise() -> None:
    draw = chance()
    members, others = Records.made_up(30, 1000, draw), Records.made_up(300, 1000, draw)
    total = members.gradients().sum(axis=0)
    assert membership(total, members, others) > 0.99
    assert membership(draw.standard_normal(1001).astype(np.float32), members, others) == pytest.approx(0.5, abs=0.2)
    assert membership(-total, members, others) < 0.01
    assert membership(np.zeros(1001, np.float32), members, others) == 0.5


def test_a_record_is_read_from_its_own_gradient() -> None:
    records = Records.made_up(1, 50, chance())
    np.testing.assert_allclose(inverted(records.gradients()[0]), records.features[0], rtol=1e-5)
    assert likeness(inverted(records.gradients()[0]), records.features[0]) == pytest.approx(1.0)


def test_nothing_is_read_from_nothing() -> None:
    assert not inverted(np.zeros(4, np.float32)).any()
    assert likeness(np.zeros(3, np.float32), np.ones(3, np.float32)) == 0.0
