"""Ports that are still free when whoever listened there comes back: the system hands none of them out to those who ask for any."""

from __future__ import annotations

import itertools
import socket
from functools import cache

FIRST, LANE, LANES = 20_000, 200, 60  # Linux begins to hand out at 32768


@cache
def _lane() -> tuple[socket.socket, itertools.cycle[int]]:
    """The ports of this process, as long as it lives: who has the name has the lane, so tests that run beside these have others."""
    for number in range(LANES):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0fedscale-tests-{number}")
        except OSError:
            name.close()
        else:
            return name, itertools.cycle(range(FIRST + number * LANE, FIRST + (number + 1) * LANE))
    raise AssertionError(f"{LANES} processes run tests on this machine")


def own_port() -> int:
    """A port at which nobody listens, and which is nobody else's when it is let go of for a moment."""
    for port in itertools.islice(_lane()[1], LANE):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("every port of this process is taken")
