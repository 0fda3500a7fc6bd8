"""Names of clients: ascending, distinct, and where they are numbered made only when somebody looks at them.

A million clients are a count and an array of numbers; nothing here costs time or memory for names that nobody asks for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

Positions: TypeAlias = npt.NDArray[np.int64]

PREFIX = "client-"


class Numbered(Sequence[str]):
    """``client-0000``, ``client-0001`` and so on, wide enough that they sort in order.

    Args:
        count: how many.
    """

    __slots__ = ("_count", "_width")

    def __init__(self, count: int) -> None:
        self._count, self._width = count, max(4, len(str(count - 1)))

    def __len__(self) -> int:
        """Number of names."""
        return self._count

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...

    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        """The name at a position, made now."""
        if isinstance(at, slice):
            return [self._name(each) for each in range(*at.indices(self._count))]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return self._name(at % self._count)

    def index(self, value: object, start: int = 0, stop: int | None = None) -> int:
        """The position of a name, read from the name itself; ValueError where there is none, as sequences have it."""
        digits = value.removeprefix(PREFIX) if isinstance(value, str) else ""
        at = int(digits) if digits.isascii() and digits.isdecimal() else -1
        if not start <= at < (self._count if stop is None else min(stop, self._count)) or self._name(at) != value:
            raise ValueError("there is no such name")
        return at

    def __contains__(self, value: object) -> bool:
        """Whether a name is among these."""
        try:
            return self.index(value) >= 0
        except ValueError:
            return False

    def _name(self, at: int) -> str:
        return f"{PREFIX}{at:0{self._width}d}"


class Names(Sequence[str]):
    """Ascending and distinct names, so that whoever draws from them need neither sort nor compare.

    Args:
        all_of: ascending and distinct: ``Numbered``, or a tuple that ``Names.of`` has sorted.
        at: positions of those that are meant, ascending; ``None`` for all.
    """

    __slots__ = ("_all", "_at")

    def __init__(self, all_of: Sequence[str], at: Positions | None = None) -> None:
        self._all, self._at = all_of, at

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Any names, sorted, each once; names that are so already are not touched."""
        if isinstance(names, Names):
            return names
        return cls(names if isinstance(names, Numbered) else tuple(sorted(set(names))))

    def subset(self, at: Positions) -> Names:
        """Those at the given ascending positions."""
        return Names(self._all, at if self._at is None else self._at[at])

    def __len__(self) -> int:
        """Number of names."""
        return len(self._all) if self._at is None else self._at.size

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...

    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        """The name at a position."""
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        return self._all[at if self._at is None else int(self._at[at])]

    def picked(self, at: Positions) -> tuple[str, ...]:
        """The names at the given positions."""
        return tuple(map(self._all.__getitem__, (at if self._at is None else self._at[at]).tolist()))

    def __iter__(self) -> Iterator[str]:
        """The names in order."""
        return iter(self._all) if self._at is None else (self._all[int(at)] for at in self._at)

    def index(self, value: object, start: int = 0, stop: int | None = None) -> int:
        """The position of a name; ValueError where there is none, as sequences have it."""
        names, some = self._all, self._at
        place = bisect_left(names, str(value)) if type(names) is tuple else names.index(value)
        at = place if some is None else int(np.searchsorted(some, place))
        count = len(names) if some is None else some.size
        if not start <= at < (count if stop is None else min(stop, count)) or names[at if some is None else int(some[at])] != value:
            raise ValueError("there is no such name")
        return at

    def __contains__(self, value: object) -> bool:
        """Whether a name is among these."""
        try:
            return self.index(value) >= 0
        except ValueError:
            return False

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same names."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        """By count and ends, as equal names have them alike."""
        return hash((len(self), *self[:1], *self[-1:]))

    def __repr__(self) -> str:
        """Count and ends only."""
        return f"Names({len(self)}: {', '.join((*self[:1], *self[-1:]))})"
