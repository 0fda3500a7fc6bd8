"""What is likely to spoil training, found before anybody trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedscale import partition
from fedscale.data.dataset import Dataset

MIN_ROWS = 10


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
