"""Measurements: every module here has ``measure()``, which yields ``Figure`` values; run them all with ``make bench``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str


def seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """Median wall time of ``work``, after one run to warm up."""
    work()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)
