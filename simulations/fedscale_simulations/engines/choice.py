"""Which engine does the work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedscale_simulations.engines.desk import Desk, Engine
from fedscale_simulations.engines.forms import Alone
from fedscale_simulations.engines.pool import Pool
from fedscale_simulations.engines.sequential import Sequential


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user wants.

    Args:
        engine: ``auto``, ``sequential``, ``vectorized`` or ``pool``.
        workers: how many processes; as many as there are processors where it is ``None``.
    """

    engine: str = "auto"
    workers: int | None = None


@contextmanager
def opened(choice: Choice, desk: Desk, names: Sequence[str]) -> Iterator[Engine]:
    """The engine of that name, closed in the end."""
    engine = Pool(desk, Alone(desk), names, choice.workers or processors()) if choice.engine == "pool" else Sequential(desk, Alone(desk))
    try:
        yield engine
    finally:
        engine.close()
