"""Reading the datasets a site has declared, in its worker or for its own eyes; none of them is sent anywhere."""

from __future__ import annotations

import importlib
import importlib.util
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedscale import data, intake
from fedscale.data import MISSING, Dataset
from fedscale.errors import DataError
from fedscale_client.declarations import LOADER, Declaration, find
from fedscale_client.home import NodeHome

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def load(home: NodeHome, name: str) -> Any:
    """Read a declared dataset.

    Raises:
        NotFound: there is none of that name.
        DataError: it cannot be read, without any of its values.
    """
    return read(find(home, name), home.path)


def check(home: NodeHome, name: str) -> list[str]:
    """Problems of a declared dataset, one sentence each; empty when there are none.

    Raises:
        NotFound: there is none of that name.
        DataError: it cannot be read.
    """
    loaded = load(home, name)
    return data.check(loaded) if isinstance(loaded, Dataset) else ["the loader returned no Dataset, so there is nothing to check it by"]


def look(declaration: Declaration, home: Path) -> dict[str, Any]:
    """What a declaration would give, in counts and shapes.

    Raises:
        DataError: as ``read``.
    """
    loaded = read(declaration, home)
    return {"rows": len(loaded), "shape": list(loaded.x.shape[1:])} if isinstance(loaded, Dataset) else {"type": type(loaded).__name__}


def require_columns(declaration: Declaration, home: Path) -> None:
    """Look whether a table in CSV has the columns that are declared; its rows are not read.

    Raises:
        DataError: it has not, or cannot be read.
    """
    wanted = intake.Columns(declaration.label, declaration.columns, declaration.group)
    intake.require_columns(home / Path(declaration.path).expanduser(), wanted)


def read(declaration: Declaration, home: Path) -> Any:
    """Read a dataset as declared.

    Raises:
        DataError: it cannot be read; exceptions of a loader pass through.
    """
    if declaration.kind == "loader":
        return _as_dataset(_function(declaration.loader, home)(**declaration.options))
    path = home / Path(declaration.path).expanduser()
    if declaration.kind == "npz":
        return _npz(path, declaration)
    if declaration.kind == "parquet":
        return _parquet(path, declaration)
    missing = MISSING if declaration.missing is None else declaration.missing
    return data.from_csv(path, declaration.label, declaration.columns, declaration.group, missing, declaration.missing_policy)


def _npz(path: Path, declaration: Declaration) -> Dataset:
    """The arrays of an archive; objects that would have to be unpickled are refused."""
    names = [name for name in (declaration.x, declaration.y, declaration.groups) if name]
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError("this is one array, not an archive of arrays", where=str(path), hint="save it with numpy.savez")
            if missing := [name for name in names if name not in archive]:
                raise DataError(f"there is no array '{missing[0]}'", where=str(path), hint="say which it is with x=, y= or groups=")
            arrays: list[Any] = [archive[name] for name in names]
    except UNREADABLE as error:
        raise DataError("the archive cannot be read", where=str(path), why=type(error).__name__) from None
    return data.from_arrays(*arrays)


def _parquet(path: Path, declaration: Declaration) -> Dataset:
    """The wanted columns of a Parquet file."""
    try:
        import pandas as pd

        frame = pd.read_parquet(path)
    except ImportError:
        raise DataError("Parquet files cannot be read here", where=str(path), hint="pip install pandas pyarrow, or export the data as CSV") from None
    except UNREADABLE as error:
        raise DataError("the file cannot be read", where=str(path), why=type(error).__name__) from None
    label, group = declaration.label, declaration.group
    columns = declaration.columns or tuple(str(name) for name in frame.columns if name not in (label, group))
    wanted = [*columns, label, *([group] if group else [])]
    if missing := [name for name in wanted if name not in frame.columns]:
        raise DataError(f"there is no column '{missing[0]}'", where=str(path))
    frame = frame[wanted]
    if declaration.missing_policy == "drop":
        frame = frame.dropna()
    if lacking := [name for name in wanted if frame[name].isna().any()]:
        raise DataError(f"column '{lacking[0]}' has a missing value", where=str(path), hint=intake.DROP)
    return data.from_arrays(frame[list(columns)].to_numpy(), frame[label].to_numpy(), _texts(frame[group]) if group else None, columns)


def _texts(values: Sequence[Any]) -> Any:
    """Groups as text, whatever the file holds."""
    return np.array([str(value) for value in values], np.str_)


def _function(loader: str, home: Path) -> Any:
    """The site's own function."""
    match = LOADER.fullmatch(loader)
    if not match:
        raise DataError("a loader is written module:function or file.py:function")
    place, name = match["place"], match["function"]
    if not place.endswith(".py"):
        module = importlib.import_module(place)
    else:
        path = home / Path(place).expanduser()
        spec = importlib.util.spec_from_file_location("fedscale_site_loader", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise DataError("there is no such loader", where=str(path))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if not callable(function := getattr(module, name, None)):
        raise DataError(f"the loader has no function '{name}'", where=place)
    return function


def _as_dataset(loaded: Any) -> Any:
    """Arrays as a Dataset; everything else is between the site's loader and the app."""
    is_arrays = isinstance(loaded, tuple) and len(loaded) in (2, 3) and all(isinstance(part, np.ndarray) for part in loaded)
    return data.from_arrays(*loaded) if is_arrays else loaded
