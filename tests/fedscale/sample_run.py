"""Runs to record and report: small, exact ones for single facts and generated ones of any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedscale.errors import Cause, Failure
from fedscale.record import Phase, RoundRecord, RunRecord

PLAN = '[job]\nname = "heart-risk"\nseed = 7\n'
COMPARISON = [
    {"kind": "alone", "site": "north", "examples": 100, "auc": 0.9},
    {"kind": "federated", "examples": 300, "auc": 0.97},
    {"kind": "pooled", "examples": 300, "auc": 0.98},
]
TIMEOUT = Failure(Cause.TIMEOUT, "no answer within 20 min", "round deadline", "check the line")
MEMORY = Failure(Cause.MEMORY, "the worker ran out of memory", "app.py:41", "lower train.batch_size", "app.py:41 in forward")


def round_of(number: int, phase: Phase = "train", **changes: Any) -> RoundRecord:
    """One phase in which ``north`` and ``south`` answered."""
    plain = RoundRecord(
        number=number,
        phase=phase,
        answered=("north", "south"),
        failures={},
        metrics={"loss": 1.0 / number},
        sites={"north": {"loss": 0.9 / number}, "south": {"loss": 1.1 / number}},
        weight=300.0,
        seconds=2.0,
        bytes_up=2_000_000,
        bytes_down=1_000_000,
    )
    return replace(plain, **changes)


def run_of(*rounds: RoundRecord, **changes: Any) -> RunRecord:
    """A finished run over these rounds; its totals are theirs."""
    plain = RunRecord(
        run="r-1",
        name="heart-risk",
        status="finished",
        reason="",
        plan_toml=PLAN,
        plan_hash="aa11",
        nodes=("north", "south"),
        rounds=rounds,
        seconds=sum(row.seconds for row in rounds),
        bytes_up=sum(row.bytes_up for row in rounds),
        bytes_down=sum(row.bytes_down for row in rounds),
        model_digest="bb22",
        extra={},
    )
    return replace(plain, **changes)


def large_run(sites: int, rounds: int) -> RunRecord:
    """A run of any size in which site ``i`` fails every round divisible by ``i + 3`` and is not asked in every round of ``i + 4``."""
    names = tuple(f"site-{at:03d}" for at in range(sites))
    rows = []
    for number in range(1, rounds + 1):
        failed = {name: TIMEOUT for at, name in enumerate(names) if number % (at + 3) == 0}
        answered = tuple(name for at, name in enumerate(names) if name not in failed and number % (at + 4))
        measured = {name: {"auc": 0.9 - 0.4 / number + int(name[-3:]) * 1e-4} for name in answered}
        rows.append(round_of(number, "evaluate", answered=answered, failures=failed, metrics={"auc": 0.9 - 0.4 / number}, sites=measured))
    return run_of(*rows, nodes=names)


def full_run() -> RunRecord:
    """A run with something in every section."""
    return run_of(
        round_of(1, failures={"south": TIMEOUT}, answered=("north",)),
        round_of(1, "evaluate", metrics={"auc": 0.8}, sites={"north": {"auc": 0.7}, "south": {"auc": 0.9}}),
        round_of(2, failures={"south": TIMEOUT, "north": MEMORY}, answered=()),
        round_of(2, "evaluate", metrics={"auc": 0.875}, sites={"north": {"auc": 0.75}, "south": {"auc": 0.9375}}),
        extra={
            "comparison": COMPARISON,
            "privacy": {"epsilon": 3.875, "delta": 1e-5, "unit": "record", "sites": {"north": 3.5}},
            "seeds": {"partition": 11},
            "versions": {"fedscale": "0.1.0", "numpy": "2.4.6"},
            "hashes": {"bundle": "cc33"},
            "secure aggregation": True,
            "tags": ["pilot", 2],
        },
    )
