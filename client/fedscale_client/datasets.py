"""The datasets a site offers: declared by name in ``datasets.toml``, read by the worker, never sent anywhere.

A job names a dataset; what lies behind the name is the site's business. Kinds: ``csv`` and ``parquet`` tables, ``npz``
arrays, and ``loader``, a function of the site's own.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from fedscale import data
from fedscale.data import MISSING, Dataset
from fedscale.errors import ConfigError, Conflict, DataError, NotFound
from fedscale.plan import NAME
from fedscale_client.home import NodeHome, make_private, parse, read_toml, write_toml

LOADER = re.compile(r"(?P<place>[\w./~ -]+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Declaration(BaseModel):
    """One dataset of a site.

    Args:
        kind: ``csv``, ``parquet``, ``npz`` or ``loader``.
        path: the file; relative to the node's home if not absolute.
        label: the column to predict (tables).
        columns: the features in order; by default all other columns (tables).
        group: the column that says which rows belong together (tables).
        missing: cells that stand for no value (csv).
        missing_policy: ``refuse`` missing values, or ``drop`` the rows that have one (tables).
        x: name of the features' array, shape ``(n, ...)`` (npz).
        y: name of the labels' array, shape ``(n,)`` (npz).
        groups: name of the groups' array, shape ``(n,)`` (npz).
        loader: ``module:function`` or ``file.py:function`` that returns a Dataset, ``(x, y)``, ``(x, y, groups)`` or whatever the app expects.
        options: keyword arguments of the loader.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["csv", "parquet", "npz", "loader"]
    path: str = ""
    label: str = ""
    columns: tuple[str, ...] | None = None
    group: str | None = None
    missing: tuple[str, ...] = MISSING
    missing_policy: Literal["refuse", "drop"] = "refuse"
    x: str = "x"
    y: str = "y"
    groups: str | None = None
    loader: str = ""
    options: dict[str, str | int | float | bool] = {}

    @model_validator(mode="after")
    def _complete(self) -> Declaration:
        if self.kind == "loader" and not LOADER.fullmatch(self.loader):
            raise ValueError("a loader is written module:function or file.py:function")
        if self.kind != "loader" and not self.path:
            raise ValueError(f"a dataset of kind {self.kind} needs a path")
        if self.kind in ("csv", "parquet") and not self.label:
            raise ValueError(f"a dataset of kind {self.kind} needs the name of its label column")
        return self

    def files(self, home: Path) -> tuple[Path, ...]:
        """The files it is made of, as far as they are known; relative ones lie in the home."""
        match = LOADER.fullmatch(self.loader)
        names = [self.path, match["place"] if match and match["place"].endswith(".py") else ""]
        return tuple(home / Path(name).expanduser() for name in names if name)


def listed(home: NodeHome) -> dict[str, Declaration]:
    """All declared datasets by name.

    Raises:
        ConfigError: ``datasets.toml`` is not valid.
    """
    if not home.datasets_file.exists():
        return {}
    tree = read_toml(home.datasets_file)
    for name in tree:
        _check_name(name)
    return {name: parse(Declaration, value, f"{home.datasets_file}: [{name}]") for name, value in tree.items()}


def find(home: NodeHome, name: str) -> Declaration:
    """One declared dataset.

    Raises:
        NotFound: there is none of that name.
    """
    known = listed(home)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"declare it with: fedscale node data add {name} ..."
        raise NotFound(f"no dataset '{name}'", where=str(home.datasets_file), hint=hint)
    return known[name]


def add(home: NodeHome, name: str, declaration: Declaration) -> None:
    """Declare a dataset.

    Raises:
        ConfigError: the name is not one a plan could use.
        Conflict: the name is taken.
        DataError: there is no such file.
    """
    _check_name(name)
    known = listed(home)
    if name in known:
        raise Conflict(f"there is a dataset '{name}' already", hint=f"remove it with: fedscale node data remove {name}")
    for file in declaration.files(home.path):
        if not file.exists():
            raise DataError("there is no such file", where=str(file))
    _write(home, {**known, name: declaration})


def remove(home: NodeHome, name: str) -> None:
    """Withdraw a dataset; its files stay as they are.

    Raises:
        NotFound: there is none of that name.
    """
    find(home, name)
    _write(home, {other: declaration for other, declaration in listed(home).items() if other != name})


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


def fingerprint(declaration: Declaration, home: Path) -> str:
    """Changes with the declaration and, by size and time, with its files; a worker that holds the data is then replaced."""
    marks = [(stat.st_size, stat.st_mtime_ns) for file in declaration.files(home) if file.exists() and (stat := file.stat())]
    return json.dumps([declaration.model_dump(mode="json"), marks])


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
    return data.from_csv(path, declaration.label, declaration.columns, declaration.group, declaration.missing, declaration.missing_policy)


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{name[:80]!r} is not a valid dataset name", hint="use letters, digits, dots, dashes and underscores")


def _write(home: NodeHome, declarations: Mapping[str, Declaration]) -> None:
    make_private(home.path)
    write_toml(home.datasets_file, {name: value.model_dump(mode="json", exclude_defaults=True) for name, value in declarations.items()})


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
        raise DataError(f"column '{lacking[0]}' has a missing value", where=str(path), hint="fill it in, or use missing_policy='drop'")
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
