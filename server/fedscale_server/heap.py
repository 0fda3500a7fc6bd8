"""How the process keeps its memory."""

from __future__ import annotations

import ctypes

ARENA_MAX = -8  # M_ARENA_MAX, malloc.h of glibc


def share_one_heap() -> None:
    """Let all threads allocate from one heap; call it before there are others.

    Frames are read, hashed and written in several threads. With a heap for each, as glibc has it, what they leave behind
    adds up, and the process grows with the number of nodes. Other C libraries have one heap anyway.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(ARENA_MAX, 1)
