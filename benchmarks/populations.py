"""Populations of every size: what a client costs beside its training, and virtual time over a million devices."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks import Figure, seconds
from fedscale.data import Population, from_arrays
from fedscale.learner import App, Phase, Result, Work
from fedscale.strategy import fed_buff
from fedscale_simulations.simulator import simulate

SIZES, COHORT, ROUNDS = (1_000, 10_000, 100_000), 500, 10
HELD = 20_000
FLAT, MINUTES, OVERHEAD = 1.2, 600.0, 50.0
ROWS = from_arrays(np.random.default_rng(0).normal(size=(20, 16)), np.arange(20) % 2)


class Idle:
    """Returns the model it is given."""

    def run(self, work: Work) -> Result:
        """Do nothing."""
        if work.arrays is None:
            return Result({"w": np.zeros(10, np.float32)}, 0)
        loss = np.array([20.0])
        return Result(None if work.phase is Phase.EVALUATE else dict(work.arrays), 20, {"loss": loss})


def crowd(count: int) -> Population:
    """Clients that cost nothing to make."""
    return Population.lazy(count, lambda _: ROWS, rows=20)


def play(count: int, select: int, rounds: int, **options: Any) -> None:
    """A simulation without evaluation, which must complete."""
    options = {"evaluate": {"every": 0, "holdout": 0}, "engine": "sequential"} | options
    run = simulate(options.pop("learner", Idle()), crowd(count), clients={"select": select, "min_per_round": 10}, rounds=rounds, **options)
    assert run.status == "completed", run.record.reason


def measure() -> Iterator[Figure]:
    """Cost per client by population, a million devices in virtual time, ten thousand tiny models in a cohort."""
    each = {size: seconds(lambda size=size: play(size, COHORT, ROUNDS), 5) / (COHORT * ROUNDS) for size in SIZES}  # type: ignore[misc]
    for size, cost in each.items():
        yield Figure(f"an idle client among {size:,}", 1e6 * cost, "us")
    held = {f"c{at:06}": ROWS for at in range(HELD)}
    cost = seconds(lambda: simulate(Idle(), held, rounds=2, evaluate={"every": 0, "holdout": 0}, engine="sequential"), 5)
    yield Figure(f"an idle client of {HELD:,} at once", 1e6 * cost / (2 * HELD), "us", OVERHEAD)
    yield Figure("an idle client among 100,000 over 1,000", each[100_000] / each[1_000], "x", FLAT)
    devices = {"hours": 8.0, "dropout": 0.05}
    yield Figure("1,000,000 devices, 1,000 rounds of 100", _once(1_000_000, 100, 1_000, devices=devices), "s", MINUTES)
    yield Figure(
        "1,000,000 devices, 10,000 answers to FedBuff", _once(1_000_000, 100, 1_000, devices=devices, strategy=fed_buff(buffer=10)), "s", MINUTES
    )
    app = App(model=lambda: torch.nn.Linear(16, 2), loss=torch.nn.functional.cross_entropy)
    yield Figure("100,000 clients, 3 rounds of 10,000 tiny models", _once(100_000, 10_000, 3, learner=app, engine="auto"), "s")
    yield Figure("peak memory of all of this", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB", 24 * 1024.0)


def _once(count: int, select: int, rounds: int, **options: Any) -> float:
    began = time.perf_counter()
    play(count, select, rounds, **options)
    return time.perf_counter() - began
