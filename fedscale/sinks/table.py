"""A CSV file with a line for each number: phase, round, site, name, value."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks.protocol import values, writing

COLUMNS = ("phase", "round", "site", "name", "value")


class Table:
    """The file ``curves.csv`` in a folder; each round is in it when the next begins.

    Args:
        folder: made if need be; a file of an earlier run is replaced.
    """

    def __init__(self, folder: Path) -> None:
        with writing("csv"):
            folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "curves.csv"
        self._write("w", [COLUMNS])

    def take(self, row: RoundRecord) -> None:
        """Write the lines of a round."""
        self._write("a", [(row.phase, row.number, site, name, repr(value)) for site, name, value in values(row)])

    def close(self, record: RunRecord | None) -> None:
        """Nothing is left to do."""

    def _write(self, mode: str, rows: Iterable[Sequence[object]]) -> None:
        with writing("csv"), self._path.open(mode, encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
