"""Data from outside as arrays: whatever numpy reads, and CSV files. What is refused is named by place, never by its value."""

from __future__ import annotations

import csv
import difflib
import math
import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from fedscale.errors import DataError

FLOAT64_EXACT = np.float64(2**53)
FLOAT32_MAX = float(np.finfo(np.float32).max)
ALWAYS_MISSING = ("", "nan")
DROP = "fill it in, or leave such rows out: --missing drop, in Python missing_policy='drop'"
ENCODE = "encode it, leave its column out by naming the others in columns, or list it in missing="


def numeric(values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Numbers of any dtype as an array; DataError for anything else."""
    given = _array(values, what)
    if given.dtype.kind not in "biuf":
        raise DataError(f"the {what} are not numbers", why=f"they are of dtype {given.dtype}", hint="encode text as numbers first")
    return given


def float32(given: npt.NDArray[Any], what: str) -> npt.NDArray[np.float32]:
    """Numbers as a contiguous float32 array, not copied when they are that already; DataError when one becomes infinite."""
    with np.errstate(over="ignore"):
        cast = given.astype(np.float32, order="C", copy=False)
    if given.dtype.kind == "f" and (np.isinf(cast) & np.isfinite(given)).any():
        raise DataError(f"the {what} hold a number that is too large for float32", hint="rescale it")
    return cast


def labels(values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Labels as int64 when every one is a whole number that float64 holds exactly, else as float32."""
    given = numeric(values, "labels")
    if given.dtype.kind == "u" and (given > np.iinfo(np.int64).max).any():
        raise DataError("a label is too large for int64")
    whole = given.dtype.kind != "f" or bool(((given == np.rint(given)) & (np.abs(given) <= FLOAT64_EXACT)).all())
    return given.astype(np.int64, copy=False) if whole else float32(given, "labels")


def groups(values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Groups as an array; text held as objects, as data frames do, becomes text."""
    given = _array(values, "groups")
    text = given.size == 0 or (given.dtype.kind == "O" and all(isinstance(value, str) for value in given.flat))
    return given.astype(np.str_) if text else given


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a file to read: features (all others when None), label and, if any, the group."""

    label: str
    features: tuple[str, ...] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The wanted columns of a file.

    Args:
        where: the file, for messages.
        names: the numeric columns, features in order and the label last.
        numbers: shape ``(n, len(names))``, float64, NaN where a value is missing.
        group: name of the text column, or None.
        texts: shape ``(n,)``, the text column, empty where a value is missing; all empty without a group.
        lines: shape ``(n,)``, the line of the file each row ends on.
    """

    where: str
    names: tuple[str, ...]
    numbers: npt.NDArray[np.float64]
    group: str | None
    texts: npt.NDArray[np.str_]
    lines: npt.NDArray[np.int64]

    def complete(self, policy: str) -> Table:
        """The rows without missing values; ``refuse`` raises DataError at the first other row, ``drop`` leaves such rows out."""
        if policy not in ("refuse", "drop"):
            raise DataError(f"there is no missing_policy '{policy}'", hint=suggest(policy, ("refuse", "drop")))
        gaps = np.isnan(self.numbers)
        if self.group is not None:
            gaps = np.column_stack((gaps, self.texts == ""))
        lacking = gaps.any(axis=1)
        if policy == "refuse" and lacking.any():
            row = int(lacking.argmax())
            name = (*self.names, self.group)[int(gaps[row].argmax())]
            line = self.lines[row]
            raise DataError(f"column '{name}' has a missing value", where=f"{self.where}:{line}", hint=DROP)
        if lacking.all():
            raise DataError("every row has a missing value", where=self.where, hint="choose columns that are filled in, with columns=")
        keep = ~lacking
        return Table(self.where, self.names, self.numbers[keep], self.group, self.texts[keep], self.lines[keep])


def read_table(path: str | os.PathLike[str], columns: Columns, missing: Iterable[str]) -> Table:
    """Read the wanted columns of a CSV file.

    UTF-8 with or without a byte-order mark, any line ends, comma-separated, names on the first line; blank lines are
    skipped. ``missing`` lists the cells that stand for no value, without regard to case; one that is a number matches
    every spelling of it. An empty cell and ``nan`` are always missing.

    Raises:
        DataError: the file cannot be read, or is not such a file; names the file, the line and the column.
    """
    with _opened(path) as rows:
        return _parse(rows, columns, missing, os.fspath(path))


def require_columns(path: str | os.PathLike[str], columns: Columns) -> None:
    """Look whether a CSV file has the wanted columns; its rows are not read.

    Raises:
        DataError: as ``read_table``, of its first line.
    """
    where = os.fspath(path)
    with _opened(path) as rows:
        header = _header(rows, where)
    for name in (*_features(header, columns, where), *([] if columns.group is None else [columns.group])):
        _find(name, header, where)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """The rows of a file."""
    file, where = Path(path), os.fspath(path)
    try:
        if file.is_dir():
            raise DataError("this is a folder, not a CSV file", where=where, hint="name a file in it")
        if file.exists() and not file.is_file():
            raise DataError("this is not a regular file", where=where)
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            yield _rows(stream, where)
    except OSError as error:
        raise DataError("the file cannot be read", where=where, why=error.strerror or type(error).__name__) from None


def suggest(name: str, known: Iterable[str]) -> str:
    """A did-you-mean hint for a name that is not among the known ones, empty when none is close."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"did you mean '{folded[close[0]]}'?" if close else ""


def _array(values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        # numpy's message may quote the data
        hint = "detach the tensor, and move it to the CPU" if hasattr(values, "detach") else "give every row the same shape"
        raise DataError(f"the {what} are not one array", hint=hint) from None


def _utf8_lines(stream: TextIO, where: str) -> Iterator[str]:
    """The lines of a stream opened with ``surrogateescape``; bytes that are not UTF-8 are refused on their own line."""
    for number, line in enumerate(stream, 1):
        try:
            if not line.isascii():
                line.encode()
        except UnicodeEncodeError:
            raise DataError("the file is not UTF-8 text", where=f"{where}:{number}", hint="save it as 'CSV UTF-8'") from None
        yield line


def _rows(stream: TextIO, where: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row that is not blank."""
    reader = csv.reader(_utf8_lines(stream, where), strict=True)
    try:
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError("the row is not well-formed CSV", where=f"{where}:{reader.line_num}", why=str(error)) from None


def _parse(rows: Iterator[tuple[int, list[str]]], columns: Columns, missing: Iterable[str], where: str) -> Table:
    header = _header(rows, where)
    features = _features(header, columns, where)
    names = (*features, columns.label)
    pick = itemgetter(*(_find(name, header, where) for name in names))
    text_at = None if columns.group is None else _find(columns.group, header, where)
    markers = {marker.strip().casefold() for marker in (*ALWAYS_MISSING, *missing)}
    values, lines, texts = array("d"), array("q"), []
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"the row has {len(row)} cells, the header {len(header)}", where=f"{where}:{line}", hint="quote cells that hold commas")
        values.extend(_floats(pick(row), names, markers, f"{where}:{line}"))
        lines.append(line)
        text = "" if text_at is None else row[text_at].strip()
        texts.append("" if text.casefold() in markers else text)
    if not lines:
        raise DataError("the file has a header but no rows", where=where)
    numbers = np.array(values, np.float64).reshape(len(lines), len(names))
    numbers[np.isin(numbers, [number for marker in markers if not math.isnan(number := _float(marker))])] = math.nan
    table = Table(where, names, numbers, columns.group, np.array(texts, np.str_), np.array(lines, np.int64))
    _require_float32(table)
    return table


def _header(rows: Iterator[tuple[int, list[str]]], where: str) -> tuple[str, ...]:
    """Column names; messages give positions, for the first line of a file without a header is data."""
    line, cells = next(rows, (0, []))
    if not cells:
        raise DataError("the file is empty", where=where)
    names = tuple(cell.strip() for cell in cells)
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise DataError("the cells are not separated by commas", where=f"{where}:{line}", hint="export the file with commas and decimal points")
    for at, name in enumerate(names, 1):
        if not name:
            raise DataError(f"column {at} has no name", where=f"{where}:{line}", hint="name it, or export the file without row numbers")
        if (first := names.index(name) + 1) != at:
            raise DataError(f"columns {first} and {at} have the same name", where=f"{where}:{line}", hint="rename one of them")
    return names


def _features(header: tuple[str, ...], columns: Columns, where: str) -> tuple[str, ...]:
    """The feature columns: those asked for, else all but the label and the group."""
    _find(columns.label, header, where)
    features = columns.features
    if features is None:
        features = tuple(name for name in header if name not in (columns.label, columns.group))
    if columns.label in features:
        raise DataError(f"column '{columns.label}' is both a feature and the label", where=where, hint="take it out of columns=")
    if not features:
        raise DataError("there are no feature columns", where=where)
    return features


def _find(name: str, header: tuple[str, ...], where: str) -> int:
    """Position of a column; no suggestion when the header holds numbers, for then it may be a row of data."""
    if name in header:
        return header.index(name)
    if any(not math.isnan(_float(other)) for other in header):
        raise DataError(f"there is no column '{name}'", where=where, why="the first line holds numbers", hint="put column names there")
    raise DataError(f"there is no column '{name}'", where=where, hint=suggest(name, header) or "the first line of the file names the columns")


def _float(text: str) -> float:
    """The number a text spells, NaN when none; digits grouped by underscores are no number in a CSV file."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _floats(cells: tuple[str, ...], names: tuple[str, ...], markers: set[str], where: str) -> list[float]:
    """The numbers of one row, NaN for a missing one."""
    try:
        if "_" not in "".join(cells):
            return list(map(float, cells))
    except ValueError:
        pass  # at least one cell is a missing marker or an error: look at each
    numbers = [_float(cell) for cell in cells]
    for name, cell, number in zip(names, cells, numbers, strict=True):
        if math.isnan(number) and cell.strip().casefold() not in markers:
            raise DataError(f"column '{name}' holds a cell that is not a number", where=where, hint=ENCODE)
    return numbers


def _require_float32(table: Table) -> None:
    """Refuse numbers that float32 cannot hold."""
    beyond = np.abs(table.numbers) > FLOAT32_MAX
    if beyond.any():
        row, at = np.argwhere(beyond)[0]
        raise DataError(f"column '{table.names[at]}' holds a number that is infinite or too large", where=f"{table.where}:{table.lines[row]}")
