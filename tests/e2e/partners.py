"""Two sites for a Flower app, each of which tells its ClientApp what a supernode would be started with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.federation import Federation

NAMES = ("ann", "bob")
LOADER = "def load():\n    return {{'partition-id': {place}, 'num-partitions': 2}}\n"


@contextmanager
def partners(folder: Path) -> Iterator[Federation]:
    """A federation of both, which lives for the block."""
    with Federation(folder) as made:
        for place, name in enumerate(NAMES):
            (folder / f"{name}.py").write_text(LOADER.format(place=place))
        made.join_all(NAMES, lambda name: {"default": ("--loader", f"{folder / name}.py:load")})
        yield made
