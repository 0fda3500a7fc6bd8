"""Measurements: every module here has ``measure()``, which yields ``Figure`` values; run them all with ``make bench``.

Modules whose names begin with an underscore are helpers. Those that start real processes do it as the end-to-end tests do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt


class Missing(Exception):
    """What a measurement needs is not on this machine."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, and the largest value that is good enough where somebody demands one."""

    name: str
    value: float
    unit: str
    at_most: float | None = None

    def __str__(self) -> str:
        """One line of a table."""
        demanded = "" if self.at_most is None else f"at most {self.at_most:g}" + ("" if self.value <= self.at_most else ": MISSED")
        return f"{self.name:44} {self.value:12.4g} {self.unit:5} {demanded}".rstrip()


def seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """Median wall time of ``work``, after one run to warm up."""
    work()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one round of secure aggregation took.

    Args:
        client: seconds of one client.
        server: seconds of the server.
        uploaded: bytes of one client.
        mean: what came out.
        extra: seconds of one client beyond quantising.
    """

    client: float
    server: float
    uploaded: int
    mean: npt.NDArray[np.float32]
    extra: float = 0.0
