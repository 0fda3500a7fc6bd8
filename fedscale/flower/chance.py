"""Random numbers of the ServerApp's and of its clients' apart: in Flower they are processes of their own.

A client that seeds the process-wide generators, as most do, must not thereby decide whom the ServerApp samples next.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Chance:
    """The process-wide generators of Python, numpy and torch, in two states: both as they are now to begin with.

    What a module of the app seeds when it is loaded, it has then seeded for both.
    """

    def __init__(self) -> None:
        self._other = _states()

    @contextmanager
    def of_clients(self) -> Iterator[None]:
        """The clients' generators inside the ``with`` block; blocks do not overlap."""
        self._turn()
        try:
            yield
        finally:
            self._turn()

    def _turn(self) -> None:
        mine = _states()
        for put, state in self._other:
            put(state)
        self._other = mine


def _states() -> list[tuple[Callable[[Any], None], Any]]:
    """The state of each generator, and how to set it; torch only where somebody has loaded it."""
    torch = sys.modules.get("torch")
    states: list[tuple[Callable[[Any], None], Any]] = [(random.setstate, random.getstate()), (np.random.set_state, np.random.get_state())]  # noqa: NPY002 - apps use them
    return [*states, (torch.set_rng_state, torch.get_rng_state())] if torch else states
