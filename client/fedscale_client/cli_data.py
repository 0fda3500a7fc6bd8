"""``fedscale node data``: what a site offers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json, at
from fedscale.errors import ConfigError
from fedscale_client import declarations
from fedscale_client.declarations import LOADER, Declaration
from fedscale_client.home import parse
from fedscale_client.options import HOME, HomeFolder, opened

KINDS = {".csv": "csv", ".parquet": "parquet", ".npz": "npz"}


def add(
    name: Annotated[str, typer.Argument(help="The name that jobs ask for.")],
    *,
    path: Annotated[Path | None, typer.Option(help="A file: .csv, .parquet or .npz.")] = None,
    label: Annotated[str, typer.Option(help="The column to predict, or the labels' array of an .npz file.")] = "",
    columns: Annotated[str, typer.Option(help="The features in order, separated by commas; by default all other columns.")] = "",
    group: Annotated[str | None, typer.Option(help="The column or .npz array that says which rows belong together, such as a patient's.")] = None,
    missing: Annotated[Literal["refuse", "drop"], typer.Option(help="What to do with rows that have a missing value.")] = "refuse",
    loader: Annotated[str, typer.Option(metavar="MODULE:FUNCTION", help="A function of this site that returns the data, instead of a file.")] = "",
    home: HomeFolder = HOME,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Declare a dataset by name."""
    node = opened(home)
    if (path is None) == (not loader):
        raise ConfigError("a dataset is a file or a loader", hint="give --path FILE with --label COLUMN, or --loader MODULE:FUNCTION")
    tree = _loaded_by(loader) if path is None else _file(path, label, columns, group, missing)
    declaration = parse(Declaration, tree, f"dataset {name}")
    data = {"name": name, "dry_run": dry_run} | declaration.model_dump(mode="json", exclude_defaults=True)
    if dry_run:
        data |= later("fedscale_client.datasets:look")(declaration, node.path)
        console.emit(data, console.facts(data), as_json=json)
        return
    if declaration.kind == "csv" and Path(declaration.path).exists():
        later("fedscale_client.datasets:require_columns")(declaration, node.path)
    declarations.add(node, name, declaration)
    console.emit(data, f"this site offers {name}", as_json=json)
    console.note(f"look at it as a job would: fedscale node data check {name} {at(home)}")


def _file(path: Path, label: str, columns: str, group: str | None, missing: str) -> dict[str, Any]:
    """The declaration of a file."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"files of the kind '{path.suffix}' cannot be read", where=str(path), hint=f"use {', '.join(KINDS)} or a loader")
    place = {"kind": kind, "path": str(path.absolute())}
    if kind == "npz":
        return place | ({"y": label} if label else {}) | ({"groups": group} if group else {})
    names = tuple(column.strip() for column in columns.split(",")) if columns else None
    return place | {"label": label, "columns": names, "group": group, "missing_policy": missing}


def _loaded_by(loader: str) -> dict[str, Any]:
    """The declaration of a loader; a file is found whatever folder the node is started in."""
    match = LOADER.fullmatch(loader)
    if match and match["place"].endswith(".py"):
        loader = f"{Path(match['place']).expanduser().absolute()}:{match['function']}"
    return {"kind": "loader", "loader": loader}


def list_(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """List the declared datasets."""
    found = declarations.listed(opened(home))
    rows = [(name, declared.kind, declared.path or declared.loader, declared.label) for name, declared in sorted(found.items())]
    data = {name: declared.model_dump(mode="json", exclude_defaults=True) for name, declared in found.items()}
    nothing = "no datasets yet; declare one: fedscale node data add NAME --path FILE.csv --label COLUMN"
    console.emit(data, console.table(("dataset", "kind", "from", "label"), rows) if rows else nothing, as_json=json)


def check(name: Annotated[str, typer.Argument(help="The dataset.")], *, home: HomeFolder = HOME, json: Json = False) -> None:
    """Read a dataset and say what would spoil training."""
    node = opened(home)
    facts = later("fedscale_client.datasets:look")(declarations.find(node, name), node.path)
    problems = later("fedscale_client.datasets:check")(node, name)
    told = "\n".join(f"{name}: {problem}" for problem in problems) or f"{name} can be trained on"
    counts = ", ".join(f"{key} {value}" for key, value in facts.items())
    console.emit({"name": name, "problems": problems} | facts, f"{told} ({counts})", as_json=json)


def remove(
    name: Annotated[str, typer.Argument(help="The dataset.")], *, home: HomeFolder = HOME, dry_run: DryRun = False, json: Json = False
) -> None:
    """Withdraw a dataset; its files stay as they are."""
    node = opened(home)
    declarations.find(node, name)
    if not dry_run:
        declarations.remove(node, name)
    console.emit({"name": name, "dry_run": dry_run}, f"{'would withdraw' if dry_run else 'withdrew'} {name}", as_json=json)
