"""A Flower app's directory: what its ``pyproject.toml`` says, read without flwr."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tomli_w

from fedscale.errors import ConfigError
from fedscale.tables import suggest

Scalar: TypeAlias = bool | int | float | str

FILE, APP, FEDERATIONS = "pyproject.toml", "[tool.flwr.app]", "[tool.flwr.federations]"
DEFAULT_NODES = 10
SETTING = re.compile(r"""([^\s=]+)=('[^']*'|"[^"]*"|\S+)""")
REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Directory:
    """A Flower app as its directory declares it.

    Args:
        path: the directory.
        name: the project's name.
        serverapp: ``module:attribute`` of the ServerApp.
        clientapp: ``module:attribute`` of the ClientApp.
        config: the run config, flat: nested tables joined with dots.
        nodes: how many supernodes its federation simulates.
    """

    path: Path
    name: str
    serverapp: str
    clientapp: str
    config: Mapping[str, Scalar]
    nodes: int

    def to_toml(self) -> str:
        """What is run, as text: components, effective run config and number of supernodes."""
        components = {"serverapp": self.serverapp, "clientapp": self.clientapp}
        app = {"components": components, "config": dict(self.config)}
        return tomli_w.dumps({"tool": {"flwr": {"app": app, "federations": {"options": {"num-supernodes": self.nodes}}}}})


def is_app(path: Path) -> bool:
    """Whether a command was given a directory, or a directory's ``pyproject.toml``, rather than a job file."""
    return path.is_dir() or path.name == FILE


def read(path: Path, overrides: Iterable[str] = (), nodes: int | None = None) -> Directory:
    """Read an app's directory.

    Args:
        path: the directory, or its ``pyproject.toml``.
        overrides: settings that win over the app's run config: ``key=value``, several in one text as in
            ``lr=0.1 local-epochs=2``, values in TOML (bare words are strings), or the path of a TOML file.
        nodes: how many supernodes instead of what the app's federation says.

    Raises:
        ConfigError: no Flower app, or an override of something that the app's run config does not have.
    """
    folder = path if path.is_dir() else path.parent
    where, tree = str(folder / FILE), _tree(folder / FILE)
    app = _table(tree, where, APP, "tool", "flwr", "app")
    components = _table(app, where, "[tool.flwr.app.components]", "components")
    config = dict(_flat(app.get("config", {}), where))
    for key, value in settings(overrides):
        if key not in config:
            raise ConfigError(f"the app's run config has no '{key}'", where=where, hint=suggest(key, config))
        config[key] = value
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(tree.get("project", {}).get("name") or folder.resolve().name)).strip("-._")
    serverapp, clientapp = (_reference(components, key, where) for key in ("serverapp", "clientapp"))
    return Directory(folder, name or "flower-app", serverapp, clientapp, config, nodes or _nodes(tree, where))


def tables(folder: Path) -> dict[str, Any]:
    """What an app's ``pyproject.toml`` says in ``[tool.fedscale]``; empty where there is nothing.

    Raises:
        ConfigError: it cannot be read, or this is no table of tables.
    """
    found = _tree(folder / FILE).get("tool", {}).get("fedscale", {})
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise ConfigError("[tool.fedscale] holds more than tables", where=str(folder / FILE), hint="write [tool.fedscale.clients], as in a job file")
    return found


def settings(texts: Iterable[str]) -> Iterator[tuple[str, Scalar]]:
    """Keys and values of overrides, see ``read``.

    Raises:
        ConfigError: a text is neither ``key=value`` nor the path of a TOML file.
    """
    for text in texts:
        if text.endswith(".toml") and "=" not in text:
            yield from _flat(_tree(Path(text)), text)
            continue
        # As Flower does; a value with spaces outside quotes can only stand alone.
        found = SETTING.findall(text) if not SETTING.sub("", text).strip() else [text.partition("=")[::2]]
        for key, value in found:
            if not key.strip() or "=" not in text:
                raise ConfigError(f"'{text}' is no setting", where="run config", hint='write key=value, several as "lr=0.1 local-epochs=2"')
            yield key.strip(), _value(value.strip())


def _value(text: str) -> Scalar:
    """A value in TOML; what is none is a string as it stands."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, Scalar) else text


def _tree(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        job = path.with_name("job.toml")
        otherwise = "give a Flower app's directory, or a job file as in: fedscale simulate DIR/job.toml"
        hint = f"it holds a job: give {job}" if job.is_file() else otherwise
        raise ConfigError(f"there is no {path.name}", where=str(path.parent), hint=hint) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read", where=str(path), why=str(error)) from None


def _table(tree: Mapping[str, Any], where: str, title: str, *keys: str) -> dict[str, Any]:
    """A table below another."""
    table: Any = tree
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(table, dict):
        raise ConfigError(f"there is no table {title}", where=where, why="a Flower app declares its components there")
    return table


def _flat(table: object, where: str, prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """The entries of nested tables, their keys joined with dots."""
    if not isinstance(table, Mapping):
        raise ConfigError("the run config is no table", where=where)
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, where, f"{prefix}{key}.")
        elif isinstance(value, Scalar):
            yield f"{prefix}{key}", value
        else:
            raise ConfigError(f"the run config's '{prefix}{key}' is no number, text or truth value", where=where)


def _reference(components: Mapping[str, Any], key: str, where: str) -> str:
    """A component as ``module:attribute``."""
    value = components.get(key)
    if not isinstance(value, str) or not REFERENCE.fullmatch(value):
        what = f"there is no '{key}' in [tool.flwr.app.components]" if value is None else f"the component '{key}' is no module:attribute"
        raise ConfigError(what, where=where, hint=f'{key} = "package.module:app"')
    return value


def _nodes(tree: Mapping[str, Any], where: str) -> int:
    """How many supernodes the default federation has, as Flower's own projects declare it; ten where none is declared."""
    federations = tree.get("tool", {}).get("flwr", {}).get("federations", {})
    chosen = federations.get(federations.get("default", ""), federations) if isinstance(federations, Mapping) else {}
    options = chosen.get("options", {}) if isinstance(chosen, Mapping) else {}
    count = options.get("num-supernodes", DEFAULT_NODES) if isinstance(options, Mapping) else DEFAULT_NODES
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError("options.num-supernodes is no number of clients", where=f"{where}: {FEDERATIONS}")
    return count
