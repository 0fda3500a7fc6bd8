"""Datasets and populations: the rows a client trains on, and the clients a simulation runs.

A ``Dataset`` is features, labels and, where rows belong together (a patient, a ward), groups. A ``Population`` is an
ordered mapping from client names to datasets. Messages and ``repr`` never show a value of the data.
"""

from fedscale.data.checks import MIN_ROWS, check, not_finite
from fedscale.data.dataset import Dataset, Population
from fedscale.data.mapped import open_folder, save_folder
from fedscale.data.sources import MISSING, from_arrays, from_csv, from_frame, from_items, from_parquet

__all__ = [
    "MIN_ROWS",
    "MISSING",
    "Dataset",
    "Population",
    "check",
    "from_arrays",
    "from_csv",
    "from_frame",
    "from_items",
    "from_parquet",
    "not_finite",
    "open_folder",
    "save_folder",
]
