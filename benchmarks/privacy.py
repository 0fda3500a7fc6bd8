"""Accounting, noise and audit: how long a ledger takes to quote, a draw of each noise, and how often an audit is right.

Times are of the processor, for all of this is one thread of arithmetic and other work on the machine should not count.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import dp_accounting as dp
import numpy as np
from dp_accounting.pld import PLDAccountant

from benchmarks import Figure
from fedscale.privacy import accountant, noise
from fedscale.privacy.accountant import epsilon, noise_multiplier
from fedscale.privacy.events import Mechanism, Spend
from fedscale_simulations.audit.campaign import self_test
from fedscale_simulations.audit.cli import BENCH, BENCH_CANARIES

DELTA = 1e-5
DRAWS, FEW_DRAWS = 1_000_000, 100_000
SAMPLED = str(Mechanism.SAMPLED_GAUSSIAN)
KINDS = [(1.0, 0.01, 20), (1.3, 0.05, 10), (0.8, 0.004, 50), (2.0, 0.1, 5), (1.1, 0.02, 30)]


def measure() -> Iterator[Figure]:
    """Processor times in one process, agreement with dp-accounting, and the audit's own test."""
    yield from _ledgers()
    yield from _agreement()
    yield Figure("noise for epsilon 4, 2000 steps at 0.01, cold", _timed(lambda: noise_multiplier(4.0, DELTA, sampling_rate=0.01, steps=2000)), "s")
    yield from _noise()
    for found in self_test(BENCH, BENCH_CANARIES, DELTA, 1, 10):
        yield Figure(f"audit: {found.fault}, of {found.runs}", found.flagged, "flags", float(found.wanted))


def _ledgers() -> Iterator[Figure]:
    rounds = [Spend(SAMPLED, *KINDS[at % len(KINDS)]) for at in range(1000)]
    yield Figure("ledger of 1,000 rounds of 5 kinds, cold", _timed(lambda: epsilon(rounds, DELTA)), "s")
    yield Figure("the same and one more round", _timed(lambda: epsilon([*rounds, rounds[0]], DELTA)), "s", 1.0)
    for count in (200, 1000):
        draw = random.Random(count)  # noqa: S311 - made-up rounds
        different = [Spend(SAMPLED, draw.uniform(0.6, 2.0), draw.uniform(0.002, 0.05), 1) for _ in range(count)]
        yield Figure(f"ledger of {count} different (q, z), cold", _timed(partial(epsilon, different, DELTA)), "s")
        yield Figure("the same without its last round, warm", _timed(partial(epsilon, different[:-1], DELTA)), "s", 1.0)
        if count == 200:
            coarse = epsilon(different, DELTA)
            with patch.object(accountant, "LADDER", ((count, 1),)):
                accountant._epsilon.cache_clear()  # noqa: SLF001 - the same ledger on the finest grid
                yield Figure("epsilon above that of the finest grid", coarse - epsilon(different, DELTA), "", 1e-3)
            accountant._epsilon.cache_clear()  # noqa: SLF001 - and back


def _agreement() -> Iterator[Figure]:
    worst = 0.0
    for noise_of, rate, steps in [*((z, q, 50 * n) for z, q, n in KINDS), (0.35, 0.01, 120)]:
        judge = PLDAccountant().compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_of)), steps)
        worst = max(worst, abs(judge.get_epsilon(DELTA) - epsilon([Spend(SAMPLED, noise_of, rate, steps)], DELTA)))
    yield Figure("largest difference from dp-accounting", worst, "", 1e-6)


def _noise() -> Iterator[Figure]:
    for draw, scale in (
        (noise.gaussian, 1.0),
        (noise.laplace, 1.0),
        *((each, size) for each in (noise.discrete_gaussian, noise.skellam) for size in (100.0, 2.0**20)),
    ):
        took = min(_timed(partial(draw, DRAWS, scale)) for _ in range(5))
        yield Figure(f"{draw.__name__} of scale {scale:g}", took / DRAWS * 1e9, "ns", 25.0)
        claimed = scale * np.sqrt(2) if draw is noise.laplace else scale
        yield Figure("its deviation over 100,000 draws from the claim", abs(float(draw(FEW_DRAWS, scale).std()) / claimed - 1), "", 0.01)


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
