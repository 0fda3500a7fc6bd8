"""What is likely to spoil training, found before anybody trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedscale import partition
from fedscale.data.dataset import Dataset

MIN_ROWS = 10
# So many columns are named, for a row without values may have a thousand.
FEW = 8


def check(dataset: Dataset) -> list[str]:
    """What is likely to spoil training, one sentence each, without values or counts; empty when nothing is."""
    x, y = dataset.x, dataset.y
    problems = [f"there are fewer than {MIN_ROWS} rows"] if len(dataset) < MIN_ROWS else []
    problems += not_finite(x, y, dataset.columns)
    if dataset.columns and len(dataset) > 1 and (same := (x == x[0]).all(axis=0)).any():
        problems.append(f"the features hold one value only{_places(dataset.columns, same)}")
    if len(dataset) and (y == y[0]).all():
        problems.append("every label is the same")
    if partition.is_classes(y) and (y < 0).any():
        problems.append("a class label is negative")
    return problems


def not_finite(x: npt.NDArray[Any], y: npt.NDArray[Any], columns: Sequence[str] = ()) -> list[str]:
    """Where numbers are none, or infinite: one sentence each for features and labels, which tells columns and no row; empty where all are finite.

    Args:
        x: features, shape ``(n, ...)``.
        y: labels, shape ``(n, ...)``.
        columns: names of the features, for a table.
    """
    problems = []
    for what, spoilt in (("NaN", np.isnan), ("infinite numbers", np.isinf)):
        if (bad := spoilt(x)).any():
            problems.append(f"the features hold {what}{_places(columns, np.any(bad, axis=0))}")
        if spoilt(y).any():
            problems.append(f"the labels hold {what}")
    return problems


def _places(columns: Sequence[str], features: npt.NDArray[Any]) -> str:
    """`` (columns 'a', 'b')`` of the features that are marked, or their positions where they have no names; nothing for images and the like."""
    if features.ndim != 1:
        return ""
    places = [f"'{columns[at]}'" if columns else str(at) for at in np.flatnonzero(features).tolist()]
    shown = ", ".join(places[:FEW]) + (f" and {len(places) - FEW} more" if len(places) > FEW else "")
    return f" ({'column' if columns else 'position'}{'s' if len(places) > 1 else ''} {shown})"
