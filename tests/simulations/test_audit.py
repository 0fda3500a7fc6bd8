"""The audit's pipeline is the deployed one; known bugs are found, and attacks fail where they should."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count as numbers

import numpy as np
import pytest

from fedscale.privacy.accountant import epsilon
from fedscale.privacy.clip import contribution
from fedscale.privacy.events import Spend
from fedscale.privacy.noise import skellam
from fedscale_simulations.audit import cli
from fedscale_simulations.audit.campaign import MASKED, NOISY, PLAIN, SUM, Attacked, Finding, allowed, attack, audit, protected, self_test
from fedscale_simulations.audit.pipeline import Fault, Pipeline
from tests.command import fedscale

DELTA = 1e-5
BENCH, CANARIES = Pipeline(4, 1024, 1.0, 1.0), 512


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise from keys, the same in every run: of releases with fresh noise one in 15,000 raises a false alarm."""
    keys = numbers()
    monkeypatch.setattr("fedscale_simulations.audit.pipeline.skellam", lambda size, sigma: skellam(size, sigma, next(keys).to_bytes(32, "big")))


def units(count: int, size: int, length: float) -> np.ndarray:
    rows = np.random.default_rng(count).standard_normal((count, size)).astype(np.float32)
    return np.asarray(rows * np.float32(length) / np.linalg.norm(rows, axis=1, keepdims=True))


def test_without_noise_the_sum_is_that_of_clipped_rows() -> None:
    quiet = Pipeline(3, 64, 2.0, 1.0, Fault.NO_NOISE)
    rows = [units(4, 64, 5.0), units(2, 64, 0.5), np.zeros((0, 64), np.float32)]
    expected = sum(contribution(row, 2.0) for own in rows for row in own)
    assert np.allclose(quiet.released(rows), expected, atol=1e-5)


def test_the_noise_of_all_shares_together_is_the_promised_one() -> None:
    for nodes in (3, 5):
        pipeline = Pipeline(nodes, 1 << 16, 0.5, 3.0)
        empty = [np.zeros((0, pipeline.size), np.float32)] * nodes
        released = pipeline.released(empty)
        assert released.std() == pytest.approx(1.5, rel=0.015)
        assert abs(released.mean()) < 5 * 1.5 / 2**8


def test_an_answer_differs_each_time_and_only_by_noise() -> None:
    rows = units(3, BENCH.size, 1.0)
    one, other = (BENCH.answer(rows, 0, 1) for _ in range(2))
    assert not np.array_equal(one, other)
    silent = replace(BENCH, fault=Fault.NO_NOISE)
    np.testing.assert_array_equal(silent.answer(rows, 0, 1), silent.answer(rows, 0, 1))


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("fault", Fault)
def test_each_known_bug_is_flagged_each_time(fault: Fault) -> None:
    flagged = [audit(replace(BENCH, fault=fault), CANARIES, DELTA, seed).flags for seed in range(3)]
    assert all(flagged), fault


@pytest.mark.usefixtures("repeatable")
def test_a_bug_is_flagged_for_what_it_does() -> None:
    def flags(fault: Fault) -> tuple[str, ...]:
        return audit(replace(BENCH, fault=fault), CANARIES, DELTA, 5).flags

    assert "noise" in flags(Fault.HALF_NOISE)
    assert "signal" not in flags(Fault.HALF_NOISE)
    assert "signal" in flags(Fault.WEIGHT)
    assert "noise" not in flags(Fault.WEIGHT)
    assert "spread" in flags(Fault.NAN)
    assert flags(Fault.PRG) == ("masks",)


def test_a_unit_that_is_no_number_counts_nothing() -> None:
    silent, rows = replace(BENCH, fault=Fault.NO_NOISE), units(3, BENCH.size, 1.0)
    for value in (np.inf, np.nan):
        odd = np.vstack([rows, np.full((1, BENCH.size), value, np.float32)])
        np.testing.assert_array_equal(silent.answer(odd, 0, 1), silent.answer(rows, 0, 1))
    odd = np.vstack([rows, np.full((1, BENCH.size), np.nan, np.float32)])
    assert not np.array_equal(replace(silent, fault=Fault.NAN).answer(odd, 0, 1)[:5], silent.answer(rows, 0, 1)[:5])


def test_seeds_of_masks_are_whole_and_all_different() -> None:
    seeds, folded = BENCH.seeds(1 << 12), replace(BENCH, fault=Fault.PRG).seeds(1 << 12)
    assert len(np.unique(seeds, axis=0)) == 1 << 12
    assert (seeds.min(0) < 16).all()
    assert (seeds.max(0) > 239).all()
    # Each of the 28 bits is there, and no other.
    assert np.packbits(np.unpackbits(folded, axis=1).any(0)).tolist() == [255, 255, 255, 15] + [0] * 28


@pytest.mark.usefixtures("repeatable")
def test_the_correct_mechanism_is_not_flagged_and_estimated_well() -> None:
    for seed in range(5):
        found = audit(BENCH, CANARIES, DELTA, seed)
        assert found.flags == ()
        assert found.claimed == epsilon([Spend("skellam", 1.0)], DELTA)
        assert found.certificate <= found.claimed
        assert all(each.epsilon == pytest.approx(found.claimed, rel=0.6) for each in found.estimates)


@pytest.mark.usefixtures("repeatable")
def test_a_restart_shows_in_the_second_round_alone() -> None:
    first, second = audit(replace(BENCH, fault=Fault.RESTART), CANARIES, DELTA, 0).estimates
    assert (first.flags, bool(second.flags)) == ((), True)


@pytest.mark.usefixtures("repeatable")
def test_attacks_succeed_in_the_clear_and_fail_under_masks_and_noise() -> None:
    pipeline = Pipeline(4, 2048, 1.0, 3.73)
    found = {each.held: each for each in attack(pipeline, 1)}
    assert protected(list(found.values()), pipeline.noise_multiplier) == (True, True)
    assert found[PLAIN].membership > 0.95
    assert found[PLAIN].inversion > 0.99
    assert found[MASKED].membership == pytest.approx(0.5, abs=0.15)
    # A sum hides whose record it was and blurs it; that it was there at all, only noise hides.
    assert found[SUM].membership > 0.9
    assert found[SUM].inversion < 0.8
    assert found[NOISY].membership <= allowed(pipeline.noise_multiplier)
    assert found[NOISY].inversion < 0.2


def test_attacks_count_as_failed_only_where_they_could_have_succeeded() -> None:
    def views(plain: float, noisy: float) -> list[Attacked]:
        return [Attacked(PLAIN, plain, plain), Attacked(MASKED, 0.5, 0.0), Attacked(SUM, 0.9, 0.5), Attacked(NOISY, noisy, 0.1)]

    assert protected(views(0.99, 0.55), 3.7) == (True, True)
    assert protected(views(0.6, 0.55), 3.7) == (False, True)
    assert protected(views(0.99, 0.95), 3.7) == (True, False)
    # A promise of hardly any privacy allows more.
    assert allowed(0.5) > 0.9 > allowed(3.7)


def test_a_self_test_is_passed_only_if_all_is_found_each_time() -> None:
    found = self_test(replace(BENCH, noise_multiplier=0.5), 64, DELTA, 3, 1)
    assert len(found) == 1 + len(Fault)
    assert [each.wanted for each in found] == [0] + [1] * len(Fault)
    assert not Finding("half noise", 9, 10, 10).passed
    assert not Finding("the correct mechanism", 1, 20, 0).passed
    assert Finding("the correct mechanism", 0, 20, 0).passed


@pytest.mark.usefixtures("repeatable")
def test_the_command_on_this_machine() -> None:
    data = fedscale("audit", "privacy", "--canaries", "600", "--json").data
    assert data["flags"] == []
    assert (data["attacks_have_power"], data["attacks_fail"]) == (True, True)
    assert data["canaries"]["certificate"] <= data["canaries"]["claimed"] == pytest.approx(1.0, abs=1e-6)
    done = fedscale("audit", "privacy", "--canaries", "600")
    assert (done.code, "epsilon promised" in done.out, "the sum with noise" in done.out) == (0, True, True)


@pytest.mark.usefixtures("repeatable")
def test_the_command_s_self_test() -> None:
    data = fedscale("audit", "privacy", "--self-test", "--runs", "1", "--json").data
    assert data["passed"] is True
    assert [(each["fault"], each["flagged"], each["runs"]) for each in data["faults"]] == [
        ("the correct mechanism", 0, 2),
        *((str(fault), 1, 1) for fault in Fault),
    ]


def test_a_broken_pipeline_ends_in_an_error_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "Pipeline", partial(Pipeline, fault=Fault.HALF_NOISE))
    done = fedscale("audit", "privacy", "--canaries", "600", "--json")
    assert done.error["type"] == "RunFailed"
    assert "noise" in done.error["what"]
    assert '"flags": ["noise"' in done.out


def test_a_self_test_that_finds_what_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "BENCH", replace(BENCH, fault=Fault.NO_NOISE))
    monkeypatch.setattr(cli, "self_test", lambda *_: [Finding("the correct mechanism", 2, 20, 0)])
    done = fedscale("audit", "privacy", "--self-test", "--json")
    assert (done.code, "flagged 2 of 20" in done.error["why"]) == (1, True)


@pytest.mark.parametrize("words", [("--nodes", "2"), ("--canaries", "1"), ("--clip", "0")])
def test_an_audit_of_nothing_is_refused(words: tuple[str, ...]) -> None:
    assert fedscale("audit", "privacy", *words, "--json").error["exit_code"] == 2
