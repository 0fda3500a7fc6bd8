from __future__ import annotations

import os
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from fedscale.torch_learner import Ceiling, give_back, settle_fork, threads

MANY, SMALL = 640, 12_500  # doubles of 100 kB, which glibc takes from its heap and not from the kernel


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_was_freed_goes_back_to_the_kernel() -> None:
    held = [np.ones(SMALL) for _ in range(MANY)]
    above = np.ones(SMALL)  # what lies below memory in use stays with the process, unless it is given back
    full = resident()
    held.clear()
    give_back()
    assert full - resident() > MANY * SMALL * 8 * 0.8
    assert above.sum() == SMALL


def test_own_memory_is_what_belongs_to_no_file(tmp_path: Path) -> None:
    np.ones(4 << 20).tofile(tmp_path / "rows")
    before = threads.own_memory()
    mapped = np.memmap(tmp_path / "rows", mode="r")
    assert mapped.sum() > 0
    between = threads.own_memory()
    taken = mmap(-1, mapped.nbytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)  # from the kernel: a heap may have as much at hand already
    taken.write(bytes([1]) * len(taken))
    after = threads.own_memory()
    assert between - before < len(taken) / 2 < after - between


@pytest.mark.parametrize(
    ("levels", "given_back"),
    [
        ([100, 104, 108, 90], 0),  # little more than after the first time
        ([100, 109, 101, 108, 110, 100], 2),  # what is given back comes again
        ([100, 120, 118, 126, 127, 119], 2),  # most of it is in use, so a little more is allowed
        ([0, 0, 0], 0),  # nobody knows
    ],
)
def test_memory_is_given_back_where_it_has_grown(monkeypatch: pytest.MonkeyPatch, levels: list[int], given_back: int) -> None:
    calls, seen = list[int](), iter(levels)
    monkeypatch.setattr(threads, "own_memory", lambda: next(seen))
    monkeypatch.setattr(threads, "give_back", lambda: calls.append(1))
    ceiling = Ceiling(spare=8)
    for _ in range(len(levels) - given_back):
        ceiling.hold()
    assert len(calls) == given_back
    assert next(seen, None) is None


def grown(pipe: Connection, *, held: bool) -> None:
    """Bytes that a process grows by that frees blocks too small for those it needs next, between others that it keeps."""
    settle_fork()
    ceiling, kept, first = Ceiling(spare=1 << 20), list[object](), 0
    for size in range(SMALL, 2 * SMALL, SMALL // 10):
        blocks = [np.ones(size) for _ in range(MANY // 16)]
        kept += blocks[::2]
        blocks.clear()
        if held:
            ceiling.hold()
        first = first or threads.own_memory()
    pipe.send_bytes(str(threads.own_memory() - first).encode())


def test_a_process_that_minds_its_memory_grows_by_what_it_keeps() -> None:
    context, found = get_context("spawn"), dict[bool, int]()  # whose heap is its own: one that was forked has holes from before
    for held in (False, True):
        ours, theirs = context.Pipe()
        process = context.Process(target=grown, args=(theirs,), kwargs={"held": held})
        process.start()
        assert ours.poll(60)
        found[held] = int(ours.recv_bytes())
        process.join()
    assert 0 < found[True] < 0.75 * found[False]
