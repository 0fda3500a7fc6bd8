"""Devices of virtual clients: how fast they compute and talk, when they are there, how often they drop out.

A ``Fleet`` is six arrays, so a million devices cost 24 MB. Synthetic fleets have the shapes that measurements of phones
show: speeds over orders of magnitude (log-normal), availability by time of day. Sources: Lai et al. 2022, arXiv:2105.11367,
section 3; Yang et al. 2021, arXiv:2006.06983, sections 3 and 4.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedscale.errors import DataError
from fedscale.names import Positions
from fedscale.sampling import derived_seed
from fedscale.tables import Document, Section, suggest

Floats = npt.NDArray[np.float32]

TABLE = "devices"
HOURS, HOUR = 24.0, 3600.0
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, le=5)]


class Devices(Section):
    """The ``[devices]`` table of a job file: the devices of its simulation.

    ``file`` is a CSV file with a device a line; without it devices are drawn. ``speed`` is the median of examples trained a
    second, ``up`` and ``down`` that of bytes a second; ``speed_spread`` and ``net_spread`` are the standard deviations of
    their logarithms. A device is there ``hours`` a day on average (24: always), around hour ``night``, and drops out of a
    task with probability ``dropout``. The run begins at hour ``start`` of the day. With ``observer`` evaluation takes no time.
    """

    file: str = ""
    speed: Positive = 100.0
    speed_spread: Spread = 1.0
    up: Positive = 1e6
    down: Positive = 4e6
    net_spread: Spread = 0.8
    hours: Annotated[float, Field(gt=0, le=HOURS)] = HOURS
    night: Annotated[float, Field(ge=0, lt=HOURS)] = 2.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start: Annotated[float, Field(ge=0, lt=HOURS)] = 0.0
    observer: bool = False

    def fleet(self, count: int, seed: int) -> Fleet:
        """So many devices; a file with fewer is gone through again and again.

        Raises:
            DataError: the file cannot be read.
        """
        if self.file:
            return read_fleet(Path(self.file)).repeated(count)
        return self._drawn(count, np.random.Generator(np.random.Philox(derived_seed(seed, 0, "devices"))))

    def _drawn(self, count: int, rng: np.random.Generator) -> Fleet:
        """Synthetic devices."""

        def around(median: float, spread: float) -> Floats:
            drawn: Floats = np.float32(median) * np.exp(np.float32(spread) * rng.standard_normal(count, np.float32))
            return drawn

        hours = np.full(count, HOURS, np.float32)
        begins = np.zeros(count, np.float32)
        if self.hours < HOURS:
            hours = np.clip(self.hours * np.exp(0.3 * rng.standard_normal(count, np.float32)), 0.25, HOURS).astype(np.float32)
            middle = self.night + 3.0 * rng.standard_normal(count, np.float32)
            begins = ((middle - hours / 2) % HOURS).astype(np.float32)
        net = around(1.0, self.net_spread)
        return Fleet(
            around(self.speed, self.speed_spread),
            (self.up * net).astype(np.float32),
            (self.down * net).astype(np.float32),
            begins,
            hours,
            np.full(count, self.dropout, np.float32),
        )


def devices_of(value: object) -> Devices | None:
    """Devices as somebody gives them in Python.

    Raises:
        PlanError: a setting is unknown or out of its range.
    """
    if value is None or isinstance(value, Devices):
        return value
    return Document("fs.simulate", {TABLE: dict(value) if isinstance(value, Mapping) else value}, {}).read(Devices, TABLE)


def table_of(job: Path, overrides: Iterable[str] = ()) -> Devices | None:
    """The devices that a job file asks for; their file lies beside it.

    Raises:
        PlanError: with file and line of the first problem.
    """
    document = Document.load(job, overrides)
    if TABLE not in document.tree:
        return None
    devices = document.read(Devices, TABLE)
    return devices.model_copy(update={"file": str(job.parent / devices.file)}) if devices.file else devices


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """Devices, one entry of each array a device, all of shape ``(n,)``.

    Args:
        speed: examples trained a second.
        up: bytes a second to the coordinator.
        down: bytes a second from it.
        begins: hour of the day from which on the device is there.
        hours: for how many hours; 24 is always.
        dropout: probability of dropping out of one task.
    """

    speed: Floats
    up: Floats
    down: Floats
    begins: Floats
    hours: Floats
    dropout: Floats

    def __len__(self) -> int:
        """Number of devices."""
        return int(self.speed.size)

    def repeated(self, count: int) -> Fleet:
        """So many devices, beginning again with the first after the last."""
        return Fleet(*(np.resize(getattr(self, column.name), count) for column in fields(self)))

    def there(self, hour: float) -> Positions:
        """Positions of the devices that are there at an hour of the day, ascending."""
        return np.flatnonzero((np.float32(hour % HOURS) - self.begins) % np.float32(HOURS) < self.hours)

    def leave(self, who: Positions, hour: float) -> npt.NDArray[np.float64]:
        """Seconds for which devices that are there will still be, shape of ``who``; infinite for those that are there always."""
        since = (hour % HOURS - self.begins[who].astype(np.float64)) % HOURS
        return np.where(self.hours[who] >= HOURS, math.inf, (self.hours[who] - since) * HOUR)


def read_fleet(path: Path) -> Fleet:
    """Devices from a CSV file with the columns ``speed``, ``up``, ``down``, ``begins``, ``hours`` and ``dropout``.

    The last three may be left out: always there, never dropping out.

    Raises:
        DataError: names the file, the line and the column.
    """
    columns: dict[str, list[float]] = {column.name: [] for column in fields(Fleet)}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            _require_columns(rows.fieldnames or (), f"{path}:1")
            for row in rows:
                if None in row:
                    raise DataError("a line of a file of devices has more cells than the first", where=f"{path}:{rows.line_num}")
                for name, values in columns.items():
                    values.append(_value(name, row, f"{path}:{rows.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", "") or type(error).__name__
        raise DataError("a file of devices cannot be read", where=str(path), why=why, hint="devices.file lies beside the job file") from None
    if not columns["speed"]:
        raise DataError("a file of devices has no line", where=str(path))
    return Fleet(*(np.array(values, np.float32) for values in columns.values()))


def _require_columns(found: Sequence[str], where: str) -> None:
    """Refuse a first line without a column that is needed, or with one that nobody would read: it may be another one, mistyped."""
    known = [column.name for column in fields(Fleet)]
    if odd := [name for name in found if name not in known]:
        raise DataError(f"a file of devices has an unknown column '{odd[0]}'", where=where, hint=suggest(odd[0], known))
    if twice := [name for at, name in enumerate(found) if name in found[:at]]:
        raise DataError(f"a file of devices has the column '{twice[0]}' twice", where=where)
    if missing := [name for name in known if name not in found and name not in DEFAULTS]:
        raise DataError(f"a file of devices has no column '{missing[0]}'", where=where, hint=f"it needs {', '.join(known)}")


LIMITS = {"speed": (0, math.inf), "up": (0, math.inf), "down": (0, math.inf), "begins": (-1e-9, HOURS), "hours": (0, HOURS), "dropout": (-1e-9, 1)}
DEFAULTS = {"begins": "0", "hours": "24", "dropout": "0"}
UNITS = {
    "speed": "examples a second, above 0",
    "up": "bytes a second, above 0, such as 125000",
    "down": "bytes a second, above 0, such as 125000",
    "begins": "an hour of the day, from 0 to 24",
    "hours": "hours a day, above 0 and at most 24",
    "dropout": "a probability, from 0 to 1",
}


def _value(name: str, row: dict[str, Any], where: str) -> float:
    """One cell, within its limits."""
    low, high = LIMITS[name]
    try:
        value = float(row.get(name) or DEFAULTS.get(name, ""))
    except ValueError:
        value = math.nan
    if not low < value <= high or math.isinf(value):
        raise DataError(f"column '{name}' of a file of devices holds no number in its range", where=where, hint=f"give {UNITS[name]}")
    return value
