"""Blobs on their way out: quick for a few nodes, and no more memory for many."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack

import pytest

from fedscale.wire.codec import SEAL, opened
from fedscale.wire.limits import FRAME
from fedscale_server.outflow import LEAST_FRAME, LEAST_SHARE, ROOM, Outflow, batch

BODY = os.urandom(3 * LEAST_SHARE + 5)


@pytest.mark.parametrize(("nodes", "share"), [(1, FRAME), (ROOM // FRAME, FRAME), (2 * ROOM // FRAME, FRAME // 2), (10_000, LEAST_SHARE)])
def test_downloads_share_the_room(nodes: int, share: int) -> None:
    outflow = Outflow()
    assert outflow.share() == FRAME
    with ExitStack() as stack:
        for _ in range(nodes):
            stack.enter_context(outflow.joined())
        assert outflow.share() == share
        assert nodes * share <= max(ROOM, nodes * LEAST_SHARE)
    assert outflow.share() == FRAME


def test_a_download_that_breaks_off_leaves_its_share() -> None:
    outflow = Outflow()
    with outflow.joined():
        for _ in range(100):
            with pytest.raises(ConnectionError), outflow.joined():
                raise ConnectionError
        assert outflow.share() == FRAME


@pytest.mark.parametrize(
    ("asked", "share", "size"),
    [
        (0, LEAST_SHARE, LEAST_SHARE),
        (FRAME, LEAST_SHARE, LEAST_SHARE),
        (LEAST_FRAME, LEAST_SHARE, LEAST_FRAME),
        (1, LEAST_SHARE, LEAST_FRAME),
        (2**32 - 1, FRAME, FRAME),
        (0, FRAME, FRAME),
    ],
)
def test_frames_are_as_long_as_both_sides_allow(asked: int, share: int, size: int) -> None:
    file, found = io.BytesIO(BODY), []
    while frames := batch(file, asked, share):
        assert sum(len(frame) - SEAL for frame in frames) <= share
        found += [bytes(opened(frame)) for frame in frames]
    assert b"".join(found) == BODY
    assert {len(frame) for frame in found[:-1]} <= {size} | ({share % size} - {0})
    assert max(map(len, found)) == min(size, len(BODY))
