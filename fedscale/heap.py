"""How the process keeps its memory."""

from __future__ import annotations

import ctypes

ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1  # M_ARENA_MAX and so on, malloc.h of glibc
LARGE = 32 << 20


def share_one_heap() -> None:
    """Let all threads allocate from one heap, frames of bulk data included; call it before there are others.

    Frames are read, hashed and written in several threads. With a heap for each, as glibc has it, what they leave behind
    adds up, and the process grows with the number of nodes. Models still come from the system and go back to it at once;
    frames do not, neither as mappings of their own nor off the end of the heap, which would cost a page fault for every 4 KiB
    received. Other C libraries have one heap anyway.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(ARENA_MAX, 1)
        library.mallopt(MMAP_THRESHOLD, LARGE)
        library.mallopt(TRIM_THRESHOLD, LARGE)
