"""How many threads torch computes with, and whose memory is whose."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
KEPT, AHEAD = 1 << 30, 16 << 20
SPARE = 8 << 20


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
    """Let torch compute in a forked process: with one thread, for the rest of its team was not copied and would be waited for for ever.

    Such a process trains one client after the other, so memory that one has freed is kept for the next. Otherwise glibc gives
    every large tensor back to the kernel and takes it anew, a tenth of a small network's training.
    """
    torch.set_num_threads(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, AHEAD)):
            mallopt(setting, value)


def give_back() -> None:
    """Give the kernel back what was freed and glibc has kept: for a process that waits while others compute beside it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Ceiling:
    """Holds the memory of a process that does the same work again and again about where it was after the first time.

    Small pieces that glibc keeps at hand come to lie between large ones; the holes between them fit no large tensor, and add up:
    a worker that trains a small CNN takes twice the memory after ten rounds. What is given back must be taken anew, a
    hundredth of a second, so that is done where memory has grown and not every time.

    Args:
        spare: bytes that it may grow.
    """

    def __init__(self, spare: int = SPARE) -> None:
        self._spare, self._limit = spare, 0

    def hold(self) -> None:
        """Between two pieces of work: give back what is free, where there is too much of it."""
        own = own_memory()
        if own <= self._limit:
            return
        if self._limit:
            give_back()
            own = own_memory()  # what is in use is no reason to do that again
        self._limit = max(self._limit, own + self._spare)


def own_memory() -> int:
    """Bytes in memory that belong to no file, those shared with the process it was forked from among them; 0 where Linux does not say."""
    try:
        _, resident, mapped, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(resident) - int(mapped)) * os.sysconf("SC_PAGE_SIZE")
