"""One heap for all threads of a server."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from fedscale.heap import share_one_heap

if sys.argv[1] == "shared":
    share_one_heap()
meeting = threading.Barrier(5)

def work():
    kept = [bytearray(50_000) for _ in range(10)]
    meeting.wait()

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
meeting.wait()
ctypes.CDLL(None).malloc_stats()
for thread in threads:
    thread.join()
"""


def heaps(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr.count("Arena ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="optional data: only glibc has several heaps")
def test_threads_share_one_heap() -> None:
    assert heaps("as usual") > 1
    assert heaps("shared") == 1


AGAIN = """
import resource
from fedscale.heap import share_one_heap

share_one_heap()
frames = [bytes(1 << 18) for _ in range(8)]
del frames
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    frames = [b"x" * (1 << 18) for _ in range(4)]
    del frames
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="optional data: other heaps keep what they have anyway")
def test_memory_of_frames_is_used_again_and_not_asked_for_anew() -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True, timeout=60)
    anew = 200 * 4 * (1 << 18) / 4096
    assert int(done.stdout) < anew / 20
