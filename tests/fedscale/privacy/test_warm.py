"""A ledger that was quoted before is quoted again from what is known: nothing is built twice, and nothing is counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from fedscale.privacy import accountant, pld
from fedscale.privacy.accountant import epsilon, epsilon_rdp, noise_multiplier
from fedscale.privacy.events import Spend

DELTA = 1e-5
KINDS = [(1.0, 0.01, 20), (1.3, 0.05, 10), (2.0, 0.1, 5)]
CACHES = (accountant._epsilon, accountant._composed, accountant._event, accountant._noise, accountant._epsilon_rdp, accountant._rdp)


def ledger(rounds: int) -> list[Spend]:
    return [Spend("poisson_subsampled_gaussian", *KINDS[at % len(KINDS)]) for at in range(rounds)]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often distributions are made and composed, from cold."""
    for cache in CACHES:
        cache.cache_clear()
    counts: Counter[str] = Counter()

    def counted_gaussian(noise: float, rate: float, step: float) -> pld.Pair:
        counts["made"] += 1
        return pld.gaussian(noise, rate, step)

    def counted_together(parts: list[tuple[pld.Loss, int]]) -> pld.Loss:
        counts["composed"] += 1
        return pld.together(parts)

    monkeypatch.setattr(accountant, "gaussian", counted_gaussian)
    monkeypatch.setattr(accountant, "together", counted_together)
    yield counts
    for cache in CACHES:
        cache.cache_clear()


def test_a_thousand_rounds_of_three_kinds_make_three_distributions(built: Counter[str]) -> None:
    epsilon(ledger(1000), DELTA)
    # Each kind in both directions, and all together in both.
    assert built == {"made": 3, "composed": 8}


def test_the_same_ledger_is_not_computed_again_in_any_order(built: Counter[str]) -> None:
    first = epsilon(ledger(30), DELTA)
    before = dict(built)
    assert epsilon(ledger(30)[::-1], DELTA) == first
    assert dict(built) == before


def test_one_more_round_composes_its_kind_and_the_whole(built: Counter[str]) -> None:
    epsilon(ledger(30), DELTA)
    before = Counter(built)
    assert epsilon(ledger(31), DELTA) > epsilon(ledger(30), DELTA)
    assert built - before == {"composed": 4}


def test_another_delta_needs_no_new_kind(built: Counter[str]) -> None:
    epsilon(ledger(30), DELTA)
    before = Counter(built)
    epsilon(ledger(30), DELTA / 10)
    assert built - before == {"composed": 2}


def test_gaussians_of_everybody_need_no_distribution_at_all(built: Counter[str]) -> None:
    epsilon([Spend("gaussian", 2.0 + at / 100) for at in range(500)], DELTA)
    epsilon([Spend("tree_aggregation", 2.0, 1.0, 64), Spend("skellam", 9.0)], DELTA)
    assert not built


def test_a_promise_is_worked_out_once(built: Counter[str]) -> None:
    first = noise_multiplier(2.0, DELTA, sampling_rate=0.1, steps=20)
    before = Counter(built)
    assert noise_multiplier(2.0, DELTA, sampling_rate=0.1, steps=20) == first
    assert built == before


def test_the_renyi_curve_of_a_kind_is_computed_once(built: Counter[str]) -> None:
    epsilon_rdp(ledger(10), DELTA)
    misses = accountant._rdp.cache_info().misses
    epsilon_rdp(ledger(500), DELTA / 3)
    assert accountant._rdp.cache_info().misses == misses == 3


def test_rounds_split_over_spends_cost_the_same_as_in_one() -> None:
    split = [Spend("poisson_subsampled_gaussian", 1.0, 0.05, steps) for steps in (1, 7, 12)]
    assert epsilon(split, DELTA) == epsilon([Spend("poisson_subsampled_gaussian", 1.0, 0.05, 20)], DELTA)
    assert epsilon_rdp(split, DELTA) == epsilon_rdp([Spend("poisson_subsampled_gaussian", 1.0, 0.05, 20)], DELTA)


def test_integers_and_floats_are_one_kind() -> None:
    mixed = [Spend("poisson_subsampled_gaussian", 1, 0.5), Spend("poisson_subsampled_gaussian", 1.0, 0.5)]
    assert len(accountant._grouped(mixed).groups) == 1
