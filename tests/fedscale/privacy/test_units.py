"""How many units of privacy there are to hide in a dataset."""

from __future__ import annotations

import numpy as np
import pytest

from fedscale.data import from_arrays
from fedscale.errors import DataError
from fedscale.privacy.units import units_of


def test_units_are_rows_patients_or_the_node() -> None:
    data = from_arrays(np.ones((6, 2)), np.arange(6) % 2, groups=np.array([1, 1, 2, 3, 3, 3]))
    assert [units_of(data, unit) for unit in ("record", "patient", "node")] == [6, 3, 1]
    with pytest.raises(DataError, match="not grouped by patient"):
        units_of(from_arrays(np.ones((2, 1)), [0, 1]), "patient")
    with pytest.raises(DataError, match="cannot be counted"):
        units_of([1, 2, 3], "record")
