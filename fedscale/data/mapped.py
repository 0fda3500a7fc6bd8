"""Populations on disk: arrays that are mapped into memory, so that only what is looked at is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from fedscale.data.dataset import Dataset, Population
from fedscale.data.sources import from_arrays
from fedscale.errors import DataError
from fedscale.names import Numbered

FORMAT = "fedscale-population-1"
ABOUT = "population.json"


def save_folder(population: Population, folder: str | os.PathLike[str]) -> Path:
    """Write a population into a folder, one client at a time; ``open_folder`` reads it.

    The rows of all clients lie one after the other in ``x.npy`` and ``y.npy``, ``ends.npy`` says where each client's end,
    ``population.json`` names clients and columns. Groups are not kept.

    Raises:
        DataError: the folder cannot be written, or labels differ in kind.
    """
    target, first = Path(folder), population[population.names[0]]
    sizes = population.sizes
    ends = np.cumsum(np.fromiter(map(len, population.values()), np.int64, len(population)) if sizes is None else sizes)
    names = len(population) if isinstance(population.names, Numbered) else list(population.names)
    try:
        target.mkdir(parents=True, exist_ok=True)
        x = open_memmap(target / "x.npy", "w+", np.float32, (int(ends[-1]), *first.x.shape[1:]))
        y = open_memmap(target / "y.npy", "w+", first.y.dtype, (int(ends[-1]),))
        begin = 0
        for (name, part), end in zip(population.items(), ends.tolist(), strict=True):
            if len(part) != end - begin or part.y.dtype != y.dtype:
                raise DataError(f"client '{name}' has another number of rows or kind of labels than was said")
            x[begin:end], y[begin:end] = part.x, part.y
            begin = end
        np.save(target / "ends.npy", ends)
        (target / ABOUT).write_text(json.dumps({"format": FORMAT, "columns": first.columns, "names": names}), encoding="utf-8")
    except OSError as error:
        raise DataError("a population cannot be written", where=str(target), why=error.strerror or type(error).__name__) from error
    return target


def open_folder(folder: str | os.PathLike[str]) -> Population:
    """A population from a folder that ``save_folder`` wrote, mapped, or with one ``NAME.npz`` a client, read when asked for.

    A client's file holds the arrays ``x`` and ``y``, and ``groups`` where rows belong together.

    Raises:
        DataError: the folder holds neither, or is damaged.
    """
    place = Path(folder)
    if (place / ABOUT).is_file():
        return _mapped(place)
    files = sorted(place.glob("*.npz"))
    if not files:
        raise DataError("there is no population in the folder", where=str(place), hint="write one with save_folder, or one NAME.npz a client")
    return Population.lazy([file.stem for file in files], lambda at: _read(files[at]))


def _mapped(place: Path) -> Population:
    """The clients as views of mapped arrays; what somebody writes into them reaches no file."""
    try:
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        x, y, ends = (np.load(place / f"{name}.npy", mmap_mode="c") for name in ("x", "y", "ends"))
        names, columns = about["names"], tuple(about["columns"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError("a population on disk is damaged", where=str(place), why=type(error).__name__) from None
    begins = np.concatenate([[0], ends[:-1]])
    count = names if isinstance(names, int) else len(names)
    if about.get("format") != FORMAT or ends.shape != (count,) or not x.shape[0] == y.shape[0] == ends[-1] or (ends <= begins).any():
        raise DataError("a population on disk is damaged", where=str(place), why="its files do not fit together")
    return Population.lazy(names, lambda at: Dataset(_rows(x, begins, ends, at), _rows(y, begins, ends, at), None, columns), rows=ends - begins)


def _rows(values: npt.NDArray[Any], begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], at: int) -> npt.NDArray[Any]:
    """One client's rows, a plain array that is a view."""
    return np.asarray(values[begins[at] : ends[at]])


def _read(file: Path) -> Dataset:
    """One client's file."""
    try:
        with np.load(file) as arrays:
            return from_arrays(arrays["x"], arrays["y"], arrays.get("groups", None))
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise DataError("a client's file cannot be read", where=str(file), why=type(error).__name__, hint="it needs the arrays x and y") from None
