from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedscale.torch_learner import give_back

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
