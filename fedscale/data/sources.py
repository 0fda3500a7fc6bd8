"""Where datasets come from: arrays, CSV and Parquet files, data frames and torch datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedscale import intake
from fedscale.data.dataset import Dataset
from fedscale.errors import DataError

MISSING = ("", "?", "NA", "nan")


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


def from_frame(frame: Any, label: str, columns: Sequence[str] | None = None, group: str | None = None, missing_policy: str = "refuse") -> Dataset:
    """A dataset from a data frame of pandas, or anything that is indexed and selected like one.

    Args:
        frame: one row an example.
        label: the column to predict.
        columns: the features, in this order; by default all columns but the label and the group.
        group: the column that says which rows belong together.
        missing_policy: ``refuse`` a frame with a missing value in a column read, or ``drop`` such rows.

    Raises:
        DataError: names the column, never a value.
    """
    if missing_policy not in ("refuse", "drop"):
        raise DataError(f"there is no policy '{missing_policy}' for missing values", hint="use refuse or drop")
    known = [str(name) for name in frame.columns]
    features = [name for name in known if name not in (label, group)] if columns is None else list(_names(columns))
    for name in (*features, label, *([group] if group else [])):
        if name not in known:
            raise DataError(f"there is no column '{name}'", hint=intake.suggest(name, known))
    values = {name: intake.numeric(frame[name].to_numpy(), f"values of column '{name}'") for name in (*features, label)}
    keep = np.ones(len(frame), bool)
    for name, column in values.items():
        gaps = np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(frame), bool)
        if gaps.any() and missing_policy == "refuse":
            raise DataError(f"column '{name}' has missing values", hint='pass missing_policy="drop" to leave such rows out')
        keep &= ~gaps
    groups = None if group is None else intake.groups(frame[group].to_numpy())[keep]
    return from_arrays(np.stack([values[name][keep] for name in features], 1), values[label][keep], groups, features)


def from_parquet(
    path: str | os.PathLike[str], label: str, columns: Sequence[str] | None = None, group: str | None = None, missing_policy: str = "refuse"
) -> Dataset:
    """A dataset from a Parquet file, read by pandas and pyarrow; arguments as of ``from_frame``.

    Raises:
        DataError: the file cannot be read, or as ``from_frame``.
    """
    try:
        import pandas as pd

        frame = pd.read_parquet(path)
    except ImportError:
        raise DataError("Parquet files need pandas and pyarrow", where=str(path), hint="pip install pandas pyarrow") from None
    except (OSError, ValueError) as error:
        raise DataError("a Parquet file cannot be read", where=str(path), why=type(error).__name__) from None
    return from_frame(frame, label, columns, group, missing_policy)


def from_items(items: Any) -> Dataset:
    """A dataset from a torch ``Dataset`` or any other sequence of ``(features, label)`` pairs.

    Raises:
        DataError: it is empty, no sequence of pairs, or features differ in shape.
    """
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise DataError(f"data of type {type(items).__name__} are no sequence of pairs", hint="give something with a length and positions")
    if not len(items):
        raise DataError("there are no rows")
    try:
        pairs = [(np.asarray(features), np.asarray(label)) for features, label in (items[at] for at in range(len(items)))]
        x, y = np.stack([features for features, _ in pairs]), np.stack([label for _, label in pairs])
    except (TypeError, ValueError) as error:
        raise DataError("the rows are not pairs of features and a label, all of one shape", why=type(error).__name__) from None
    return from_arrays(x, y)


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """A lone string is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)
