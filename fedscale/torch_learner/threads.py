"""How many threads torch computes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, unless ``OMP_NUM_THREADS`` says otherwise.

    Sums depend on how they are split over threads, so with one thread the same work gives the same bits on machines with
    different numbers of cores; and small models are faster so.
    """
    before = torch.get_num_threads()
    # The variable may have been set after torch was loaded, so it is applied and not only respected.
    told = os.environ.get("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(told) if told.isdecimal() and int(told) else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settle_fork() -> None:
    """Let torch compute in a forked process: with one thread, for the rest of its team was not copied and would be waited for for ever."""
    torch.set_num_threads(1)
