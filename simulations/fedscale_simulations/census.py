"""The clients of a simulation: their names, how many rows each has, and what a record says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from fedscale.causes import attempted
from fedscale.data import Population
from fedscale.learner import App
from fedscale.names import Names, Numbered
from fedscale.record import JSON


@dataclass(frozen=True)
class Census:
    """Counts a simulation's clients without making the data of those that are made when asked for.

    Args:
        data: what each client has, by name.
    """

    data: Mapping[str, Any]

    @cached_property
    def names(self) -> Names:
        """All clients, ascending."""
        return Names.of(self._given)

    @cached_property
    def listed(self) -> tuple[str, ...]:
        """The names that a record lists, in the order given; none where they are numbers and may be a million."""
        return () if isinstance(self._given, Numbered) else tuple(self._given)

    @cached_property
    def rows(self) -> Callable[[str], int]:
        """The rows of a client, by name; one for data without a length."""
        sizes, names = self._sizes, self._given
        if sizes is None:
            return partial(_length, self.data)
        if isinstance(names, Numbered):
            return lambda name: int(sizes[names.index(name)])
        return dict(zip(names, sizes.tolist(), strict=True)).__getitem__

    @property
    def largest(self) -> int | None:
        """Most rows of a client; ``None`` where nobody knows without making the data."""
        if self._sizes is not None:
            return int(self._sizes.max())
        lengths = None if isinstance(self.data, Population) else attempted(lambda: [len(value) for value in self.data.values()])
        return max(lengths) if isinstance(lengths, list) else None

    @property
    def facts(self) -> dict[str, JSON]:
        """What a record says about the clients as a whole."""
        return {"clients": len(self.names)}

    @property
    def _given(self) -> Iterable[str]:
        return self.data.names if isinstance(self.data, Population) else self.data

    @cached_property
    def _sizes(self) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
        return self.data.sizes if isinstance(self.data, Population) else None


def weight_cap(app: object, data: object) -> dict[str, float] | None:
    """The smallest power of two that no client's examples exceed, so that small clients use the ring's whole precision.

    ``None``, so that the plan's default holds, where the examples are the learner's own business: for anything but an
    ``App``, for one that prepares its data, and for data that are made when they are asked for.
    """
    known = isinstance(app, App) and app.prepare is None and isinstance(data, Mapping) and len(data) > 0
    largest = Census(data).largest if known and isinstance(data, Mapping) else None
    return None if largest is None else {"weight_cap": float(1 << max(largest - 1, 0).bit_length())}


def _length(data: Mapping[str, Any], name: str) -> int:
    """The rows of a client; one of data without a length, and of data that cannot be had, which is told when the client is asked for an answer."""
    length = attempted(lambda: len(data[name]))
    return length if isinstance(length, int) else 1
