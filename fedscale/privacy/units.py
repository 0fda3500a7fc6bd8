"""What one unit of privacy is in a dataset: a record, a patient, or all that a node has."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedscale.data import Dataset
from fedscale.errors import DataError


def units_of(data: Any, unit: str) -> int:
    """How many units of privacy a dataset holds.

    Raises:
        DataError: it is no ``Dataset``, or its rows are not grouped by patient where patients are to be hidden.
    """
    if unit == "node":
        return 1
    if not isinstance(data, Dataset):
        raise DataError(f"the {unit}s of {type(data).__name__} cannot be counted", hint="privacy of rows needs a fedscale dataset")
    if unit == "record":
        return len(data)
    if data.groups is None:
        raise DataError("the rows are not grouped by patient", hint="name the column of the patients as groups when the data are read")
    return len(np.unique(data.groups))
