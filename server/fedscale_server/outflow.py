"""Blobs on their way out: where many are fetched at once their frames are shorter, for memory grows with each of them.

A frame that waits for its line is held twice, here and by gRPC.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fedscale.wire.codec import sealed
from fedscale.wire.limits import FRAME

LEAST_FRAME = 16 << 10
# The frames of all downloads together; where more come at once, each has yet one that is worth sending.
ROOM, LEAST_SHARE = 4 * FRAME, FRAME // 2


class Outflow:
    """The downloads that are under way."""

    def __init__(self) -> None:
        self._open = 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """One more, until it is left."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def share(self) -> int:
        """Most bytes of the next frame of one of them."""
        return min(max(ROOM // max(self._open, 1), LEAST_SHARE), FRAME)


def batch(file: BinaryIO, asked: int, share: int) -> list[bytes]:
    """The next frames of a file as they travel, several where small ones are asked for: handing work to a thread costs as much as reading.

    Args:
        file: where it stands.
        asked: most bytes of a frame that the other side wants; 0 for any number.
        share: most bytes of all of them.

    Returns:
        None at the end of the file.
    """
    size = max(asked, LEAST_FRAME) if asked else share
    data = memoryview(file.read(share))
    return [sealed(data[start : start + size]) for start in range(0, len(data), size)]
