"""Datasets and populations: the rows a client trains on, and the clients a simulation runs.

A ``Dataset`` is features, labels and, where rows belong together (a patient, a ward), groups. A ``Population`` is an
ordered mapping from client names to datasets. Messages and ``repr`` never show a value of the data.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale import intake, partition
from fedscale.errors import DataError

Features: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[Any]
Groups: TypeAlias = npt.NDArray[Any]

MISSING = ("", "?", "NA", "nan")
MIN_ROWS = 10


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
                each distinct value of a feature, or of the groups when ``column`` is left out.
            clients: how many; for ``column`` the values decide, and a number given must agree.
            seed: the same seed gives the same population.
            options: the one option of the kind.

        Raises:
            DataError: the kind or an option is unknown, or the rows cannot be spread so.
        """
        option = partition.option_of(kind, options)
        if kind == "column":
            return _by_value(self, self.groups if option is None else _feature(self, option), clients)
        if clients is None:
            raise DataError(f"partition '{kind}' needs the number of clients")
        parts = partition.spread(kind, self.y, clients, option, partition.generator(seed))
        return _population(self, parts, partition.client_names(clients))


@dataclass(frozen=True, slots=True, eq=False)
class Population(Mapping[str, Dataset]):
    """Named clients and their datasets, ordered and immutable; build one with ``Population.of`` or ``Dataset.partition``."""

    _parts: Mapping[str, Dataset]

    @classmethod
    def of(cls, parts: Mapping[str, Dataset]) -> Population:
        """Clients by name, in the order given, all of one layout; int64 and float32 labels together become float32.

        Raises:
            DataError: there are none, one is empty, has another layout or a name that a node could not have.
        """
        if not parts:
            raise DataError("a population needs at least one client")
        first = next(iter(parts.values()))
        for name, dataset in parts.items():
            if not partition.NAME.fullmatch(name):
                raise DataError(f"'{name}' cannot be a client's name", hint=f"use '{partition.slug(name)}'")
            if not len(dataset):
                raise DataError(f"client '{name}' has no rows")
            _require_same_layout(first, dataset, f"client '{name}'")
        return cls(dict(zip(parts, _same_labels(list(parts.values())), strict=True)))

    @property
    def names(self) -> tuple[str, ...]:
        """The clients in order."""
        return tuple(self._parts)

    def __getitem__(self, name: str) -> Dataset:
        """The dataset of a client; KeyError when there is none, as mappings have it."""
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        """The clients' names in order."""
        return iter(self._parts)

    def __len__(self) -> int:
        """Number of clients."""
        return len(self._parts)

    def __repr__(self) -> str:
        """Counts only."""
        return f"Population({len(self)} clients, {sum(len(part) for part in self.values())} rows)"


def from_arrays(x: npt.ArrayLike, y: npt.ArrayLike, groups: npt.ArrayLike | None = None, columns: Sequence[str] = ()) -> Dataset:
    """A dataset from anything numpy can read; arrays that already have the right dtype are not copied.

    Args:
        x: features, shape ``(n, ...)``, numbers; become float32.
        y: labels, shape ``(n,)``, numbers; become int64 when all are whole, else float32.
        groups: which rows belong together, integers or text, shape ``(n,)``.
        columns: names of the features, for a table.

    Raises:
        DataError: something is not numeric, too large, or shapes do not agree.
    """
    return Dataset(
        intake.float32(intake.numeric(x, "features"), "features"),
        intake.labels(y),
        None if groups is None else intake.groups(groups),
        _names(columns),
    )


def from_csv(
    path: str | os.PathLike[str],
    label: str,
    columns: Sequence[str] | None = None,
    group: str | None = None,
    missing: Sequence[str] = MISSING,
    missing_policy: str = "refuse",
) -> Dataset:
    """A dataset from a comma-separated UTF-8 file whose first line names the columns.

    Args:
        path: the file.
        label: the column to predict.
        columns: the features, in this order; by default all columns but the label and the group.
        group: the column that says which rows belong together, read as text.
        missing: cells that stand for no value, whatever their case; ``"-9"`` also matches ``-9.0``. Empty and ``nan``
            always do.
        missing_policy: ``refuse`` a file with a missing value in a column read, or ``drop`` such rows.

    Raises:
        DataError: names the file, the line and the column, never the cell.
    """
    wanted = intake.Columns(label, None if columns is None else _names(columns), group)
    table = intake.read_table(path, wanted, _names(missing)).complete(missing_policy)
    groups = None if group is None else table.texts
    return from_arrays(table.numbers[:, :-1], table.numbers[:, -1], groups, table.names[:-1])


def check(dataset: Dataset) -> list[str]:
    """What is likely to spoil training, one sentence each, without values or counts; empty when nothing is."""
    x, y = dataset.x, dataset.y
    problems = [f"there are fewer than {MIN_ROWS} rows"] if len(dataset) < MIN_ROWS else []
    for what, spoilt in (("NaN", np.isnan), ("infinite numbers", np.isinf)):
        if (bad := spoilt(x)).any():
            problems.append(f"the features hold {what}{_places(dataset, np.any(bad, axis=0))}")
        if spoilt(y).any():
            problems.append(f"the labels hold {what}")
    if dataset.columns and len(dataset) > 1 and (same := (x == x[0]).all(axis=0)).any():
        problems.append(f"the features hold one value only{_places(dataset, same)}")
    if len(dataset) and (y == y[0]).all():
        problems.append("every label is the same")
    if partition.is_classes(y) and (y < 0).any():
        problems.append("a class label is negative")
    return problems


def _places(dataset: Dataset, features: npt.NDArray[Any]) -> str:
    """`` (columns 'a', 'b')`` when the features are named, else nothing."""
    names = [f"'{name}'" for name, marked in zip(dataset.columns, features, strict=True) if marked] if dataset.columns else []
    return f" (column{'s' if len(names) > 1 else ''} {', '.join(names)})" if names else ""


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """A lone string is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


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
