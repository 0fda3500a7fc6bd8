"""Rows to learn from, and the clients that have them: held, or made when they are asked for."""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale import intake, partition
from fedscale.causes import attempted
from fedscale.errors import DataError, FedscaleError
from fedscale.names import Numbered

Features: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[Any]
Groups: TypeAlias = npt.NDArray[Any]

KEPT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Rows to learn from; build one with ``from_arrays`` or ``from_csv``.

    Args:
        x: features, float32, shape ``(n, ...)``.
        y: labels, shape ``(n,)``, int64 for classes and counts, float32 otherwise.
        groups: which rows belong together, integers or text, shape ``(n,)``, or None.
        columns: names of the features when ``x`` is a table, else empty.

    Raises:
        DataError: shapes or dtypes differ from the above.
    """

    x: Features
    y: Labels
    groups: Groups | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        parts: tuple[object, ...] = (self.x, self.y)
        if not all(isinstance(part, np.ndarray) for part in parts):
            what = f"features of type {type(self.x).__name__} and labels of type {type(self.y).__name__}"
            raise DataError(what, hint="build the dataset with from_arrays")
        if self.x.dtype != np.float32 or self.y.dtype not in (np.int64, np.float32):
            raise DataError(f"features of dtype {self.x.dtype} and labels of dtype {self.y.dtype}", hint="build the dataset with from_arrays")
        if self.y.ndim != 1 or self.x.shape[:1] != self.y.shape:
            raise DataError(f"features of shape {self.x.shape} and labels of shape {self.y.shape}", why="there must be one label a row")
        if self.groups is not None and (self.groups.shape != self.y.shape or self.groups.dtype.kind not in "iuU"):
            raise DataError("the groups do not fit", why="there must be one integer or text a row")
        if self.columns and (self.x.shape[1:] != (len(self.columns),) or len(set(self.columns)) != len(self.columns)):
            raise DataError(f"{len(self.columns)} names for features of shape {self.x.shape}", why="each feature needs one name of its own")

    def __len__(self) -> int:
        """Number of rows."""
        return self.y.size

    def __repr__(self) -> str:
        """Shapes and dtypes only."""
        return f"Dataset({len(self)} rows, x {list(self.x.shape[1:])} {self.x.dtype}, y {self.y.dtype})"

    @property
    def digest(self) -> str:
        """SHA-256 in hex over names, shapes, dtypes and every value, the same on every machine."""
        groups = None if self.groups is None else self.groups.tolist()
        digest = hashlib.sha256(json.dumps([self.x.shape, self.y.dtype.name, self.columns, groups]).encode())
        for values in (self.x, self.y):
            digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1).data)
        return digest.hexdigest()

    def take(self, indices: npt.ArrayLike) -> Dataset:
        """The rows at the given positions, in that order, as copies."""
        rows = np.asarray(indices)
        if rows.size == 0:
            rows = np.empty(0, np.int64)
        elif rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(self):
            raise DataError(f"not row positions of a dataset of {len(self)} rows", hint="use whole numbers from 0 up")
        return replace(self, x=self.x[rows], y=self.y[rows], groups=None if self.groups is None else self.groups[rows])

    def split(self, holdout: float, seed: int) -> tuple[Dataset, Dataset]:
        """(train, held out): ``holdout`` is the fraction held out, stratified when the labels are classes.

        The same rows and seed always give the same split. With groups, such as patients, whole groups are held out, so
        that nobody is trained and evaluated on. Neither part is empty when there are two rows, or groups, or more and
        ``holdout > 0``.
        """
        train, held_out = partition.holdout(self.y, holdout, seed, self.groups)
        return self.take(train), self.take(held_out)

    def split_alone(self, holdout: float, seed: int) -> tuple[Dataset, Dataset]:
        """(train, held out) as ``split``, but where each row, or group, falls depends on nothing but itself and the seed.

        What is trained on then changes by one row when one row comes or goes, as differential privacy has it. The fraction held
        out is met on average, and a part may be empty.
        """
        held = partition.alone(self.x, self.y, holdout, seed, self.groups)
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))

    @classmethod
    def concat(cls, parts: Sequence[Dataset]) -> Dataset:
        """All rows of datasets of one layout, in order; int64 and float32 labels together become float32."""
        if not parts:
            raise DataError("there are no datasets to join")
        first = parts[0]
        for part in parts:
            _require_same_layout(first, part, "a dataset")
            if _kind(part.groups) != _kind(first.groups):
                raise DataError("the datasets' groups differ in kind", hint="give all of them groups of one kind, or none")
        parts = _same_labels(parts)
        groups = None if first.groups is None else np.concatenate([part.groups for part in parts if part.groups is not None])
        return cls(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]), groups, first.columns)

    def partition(self, kind: str, clients: int | None = None, seed: int = 0, **options: float | str) -> Population:
        """Spread the rows over simulated clients; no row is lost or repeated and no client is empty.

        Args:
            kind: ``iid``; ``dirichlet`` (``alpha``), label skew; ``shards`` (``per_client``), at most so many labels a
                client; ``quantity`` (``alpha``), size skew; ``column`` (``column``, a name or position), one client for
                each distinct value of a feature, or of the groups when ``column`` is left out; a client is one group then,
                and its rows have none.
            clients: how many; for ``column`` the values decide, and a number given must agree.
            seed: the same seed gives the same population.
            options: the one option of the kind.

        Raises:
            DataError: the kind or an option is unknown, or the rows cannot be spread so.
        """
        option = partition.option_of(kind, options)
        if kind == "column":
            values = self.groups if option is None else _feature(self, option)
            # Of a group that is a client nothing could be held out, for groups stay together.
            return _by_value(replace(self, groups=None) if option is None else self, values, clients)
        if clients is None:
            raise DataError(f"partition '{kind}' needs the number of clients")
        parts = partition.spread(kind, self.y, clients, option, partition.generator(seed))
        return _population(self, parts, partition.client_names(clients))


@dataclass(frozen=True, slots=True, eq=False)
class Population(Mapping[str, Dataset]):
    """Named clients and their datasets, ordered and immutable.

    Build one with ``Population.of``, ``Population.lazy``, ``Dataset.partition`` or ``open_folder``.
    """

    _parts: Mapping[str, Dataset]
    _sizes: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, parts: Mapping[str, Dataset]) -> Population:
        """Clients by name, in the order given, all of one layout; int64 and float32 labels together become float32.

        A client whose labels are float32 for want of one, and not because they are measured, does not turn the others' classes into numbers.

        Raises:
            DataError: there are none, one is empty, has another layout or a name that a node could not have.
        """
        if not isinstance(parts, Mapping):
            raise DataError(f"clients of type {type(parts).__name__}", why="a mapping from their names to datasets is expected")
        if not parts:
            raise DataError("a population needs at least one client")
        first = next(iter(parts.values()))
        _require_names(parts)
        for name, dataset in parts.items():
            _require_rows(dataset, name)
            _require_same_layout(first, dataset, f"client '{name}'")
        whole = {name: part for name, part in parts.items() if not np.isnan(part.y).any()}
        return cls({**parts, **dict(zip(whole, _same_labels(list(whole.values())), strict=True))})

    @classmethod
    def lazy(
        cls,
        clients: int | Iterable[str],
        make: Callable[[int], Dataset],
        *,
        rows: int | npt.ArrayLike | None = None,
        keep: int = KEPT,
    ) -> Population:
        """Clients whose data are made when somebody asks for them, so that hundreds of thousands cost nothing.

        Args:
            clients: how many, then named ``client-0000`` and so on, or their names.
            make: makes the dataset of the client at a position; the same one every time.
            rows: how many rows each has, one number for all or one each, where that is known without making them.
            keep: how many datasets are kept at a time, those last asked for.

        Raises:
            DataError: there are no clients, or a name is given twice or could not be a node's. What ``make`` returns is
                checked when it is asked for.
        """
        names: Sequence[str] = Numbered(max(clients, 0)) if isinstance(clients, int) else tuple(clients)
        if not len(names):
            raise DataError("a population needs at least one client")
        if isinstance(names, tuple):
            _require_names(names)
        sizes = None if rows is None else np.asarray(rows, np.int64)
        if sizes is not None and sizes.shape not in ((), (len(names),)):
            raise DataError(f"rows of shape {sizes.shape} for {len(names)} clients", hint="give one number for all, or one each")
        return cls(Made(names, make, keep), None if sizes is None else np.broadcast_to(sizes, len(names)))

    @property
    def names(self) -> Sequence[str]:
        """The clients in order."""
        return self._parts.names if isinstance(self._parts, Made) else tuple(self._parts)

    @property
    def is_lazy(self) -> bool:
        """Whether data are made when they are asked for."""
        return isinstance(self._parts, Made)

    @property
    def sizes(self) -> npt.NDArray[np.int64] | None:
        """Rows of each client in order; ``None`` where nobody knows without making the data."""
        if self._sizes is None and not self.is_lazy:
            return np.array([len(part) for part in self._parts.values()])
        return self._sizes

    def __getitem__(self, name: str) -> Dataset:
        """The dataset of a client; KeyError when there is none, as mappings have it."""
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        """The clients' names in order."""
        return iter(self._parts)

    def __len__(self) -> int:
        """Number of clients."""
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        """Whether there is a client of this name; its data are not made."""
        return name in self._parts

    def __repr__(self) -> str:
        """Counts only."""
        rows = "made when asked for" if self.sizes is None else f"{int(self.sizes.sum())} rows"
        return f"Population({len(self)} clients, {rows})"


class Made(Mapping[str, Dataset]):
    """Datasets by name, each made when it is asked for, the last few kept.

    Args:
        names: of the clients.
        make: makes the dataset of the client at a position.
        keep: how many are kept.
    """

    def __init__(self, names: Sequence[str], make: Callable[[int], Dataset], keep: int) -> None:
        self.names, self._make = names, make
        self._at = None if isinstance(names, Numbered) else {name: at for at, name in enumerate(names)}
        self._first: Dataset | None = None
        self._kept = lru_cache(maxsize=keep)(self._checked)

    def __getitem__(self, name: str) -> Dataset:
        """The dataset of a client; KeyError when there is none."""
        if name not in self:
            raise KeyError(name)
        return self._kept(self.names.index(name) if self._at is None else self._at[name])

    def __iter__(self) -> Iterator[str]:
        """The names in order."""
        return iter(self.names)

    def __len__(self) -> int:
        """Number of clients."""
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        """Whether there is a client of this name."""
        return name in (self.names if self._at is None else self._at)

    def _checked(self, at: int) -> Dataset:
        """A dataset, made now; all must be of the layout of the one made first."""
        made = attempted(lambda: self._make(at))
        if isinstance(made, FedscaleError):
            raise made  # which says itself what is wrong
        if isinstance(made, Exception):
            # The data that are made here are those of whoever simulates.
            raise DataError(f"the data of client '{self.names[at]}' cannot be made", why=f"{type(made).__name__}: {made}") from made
        _require_rows(made, self.names[at])
        self._first = self._first or made
        _require_same_layout(self._first, made, f"client '{self.names[at]}'")
        return made


def _require_rows(made: object, name: str) -> None:
    """Refuse what is no dataset, or has no rows."""
    if not isinstance(made, Dataset):
        raise DataError(f"client '{name}' is of type {type(made).__name__}", why="a Dataset is expected", hint="see from_arrays")
    if not len(made):
        raise DataError(f"client '{name}' has no rows")


def _require_names(names: Iterable[str]) -> None:
    """Refuse names that a node could not have, or that are there twice."""
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"the name of a client is of type {type(name).__name__}", why="text is expected")
        if not partition.NAME.fullmatch(name):
            raise DataError(f"'{name}' cannot be a client's name", hint=f"use '{partition.slug(name)}'")
        if name in seen:
            raise DataError(f"there are two clients '{name}'")
        seen.add(name)


def _kind(groups: Groups | None) -> str:
    """``none``, ``text`` or ``integer``."""
    return "none" if groups is None else "text" if groups.dtype.kind == "U" else "integer"


def _require_same_layout(first: Dataset, other: Dataset, who: str) -> None:
    if other.x.shape[1:] != first.x.shape[1:]:
        raise DataError(f"{who} has features of shape {other.x.shape[1:]}, the first one {first.x.shape[1:]}")
    if other.columns != first.columns:
        raise DataError(f"{who} has other columns than the first one, or another order", hint="name the same columns in the same order")


def _same_labels(parts: Sequence[Dataset]) -> list[Dataset]:
    """Datasets with labels of one dtype, for a site whose numbers all happen to be whole reads them as int64."""
    if len({part.y.dtype for part in parts}) == 1:
        return list(parts)
    return [replace(part, y=part.y.astype(np.float32, copy=False)) for part in parts]


def _feature(dataset: Dataset, column: float | str) -> npt.NDArray[Any]:
    """The values of one feature, by name or position."""
    if dataset.x.ndim != 2:
        raise DataError(f"features of shape {dataset.x.shape} have no columns")
    if isinstance(column, str):
        if column not in dataset.columns:
            raise DataError(f"there is no column '{column}'", hint=intake.suggest(column, dataset.columns))
        return dataset.x[:, dataset.columns.index(column)]
    if not isinstance(column, numbers.Integral) or not 0 <= column < dataset.x.shape[1]:
        raise DataError("there is no such column", why=f"positions go from 0 to {dataset.x.shape[1] - 1}")
    return dataset.x[:, int(column)]


def _by_value(dataset: Dataset, values: npt.NDArray[Any] | None, clients: int | None) -> Population:
    if values is None:
        raise DataError("partition 'column' needs the option 'column'", why="the dataset has no groups either")
    parts = partition.column(values)
    if clients not in (None, len(parts)):
        raise DataError(f"the column has {len(parts)} distinct values, not {clients}", hint="leave clients out")
    return _population(dataset, parts, partition.value_names(values[rows[0]] for rows in parts))


def _population(dataset: Dataset, parts: Sequence[partition.Indices], names: Sequence[str]) -> Population:
    return Population.of({name: dataset.take(rows) for name, rows in zip(names, parts, strict=True)})
