"""The datasets a site offers: declared by name in ``datasets.toml``; what lies behind a name is the site's business.

Kinds: ``csv`` and ``parquet`` tables, ``npz`` arrays, and ``loader``, a function of the site's own. Reading them is another
module's part, which needs numpy; this one must not keep a command waiting.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from fedscale import files
from fedscale.errors import ConfigError, Conflict, DataError, NotFound, PolicyRefusal
from fedscale.tables import NAME
from fedscale_client.home import NodeHome, parse, read_toml, write_toml

LOADER = re.compile(r"(?P<place>[\w./~ -]+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


class Declaration(BaseModel):
    """One dataset of a site.

    Args:
        kind: ``csv``, ``parquet``, ``npz`` or ``loader``.
        path: the file; relative to the node's home if not absolute.
        label: the column to predict (tables).
        columns: the features in order; by default all other columns (tables).
        group: the column that says which rows belong together (tables).
        missing: cells that stand for no value (csv); by default the usual ones.
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
    missing: tuple[str, ...] | None = None
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


def offered(home: NodeHome, name: str) -> Declaration:
    """The declaration of a dataset that a plan names.

    Raises:
        ConfigError: ``datasets.toml`` is not valid.
        PolicyRefusal: the site has declared no dataset of that name.
    """
    declaration = listed(home).get(name)
    if declaration is None:
        raise PolicyRefusal(f"this site does not offer the dataset '{name}'", hint=f"the site can declare it: fedscale node data add {name} ...")
    return declaration


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


def fingerprint(declaration: Declaration, home: Path) -> str:
    """Changes with the declaration and, by size and time, with its files; a worker that holds the data is then replaced."""
    marks = [(stat.st_size, stat.st_mtime_ns) for file in declaration.files(home) if file.exists() and (stat := file.stat())]
    return json.dumps([declaration.model_dump(mode="json"), marks])


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{name[:80]!r} is not a valid dataset name", hint="use letters, digits, dots, dashes and underscores")


def _write(home: NodeHome, declarations: Mapping[str, Declaration]) -> None:
    files.private_folder(home.path)
    write_toml(home.datasets_file, {name: value.model_dump(mode="json", exclude_defaults=True) for name, value in declarations.items()})
