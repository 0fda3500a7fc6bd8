"""Public means documented: what can be called, set or raised is compared with docs/reference.md.

A thing is documented by a line that names it as code, between backticks.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
import typer
from pydantic import BaseModel

import fedscale
from fedscale import cli
from fedscale.errors import Cause, FedscaleError
from fedscale.plan import BESIDES, BUILT_IN_METRICS, Plan
from fedscale.sinks import Tracking
from fedscale.strategy import STRATEGIES
from fedscale_simulations.devices import Devices
from fedscale_simulations.sweep.space import Sweep
from tests.architecture import measure

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s#]+)[^)]*\)")


class Reference:
    """The code spans of each line of docs/reference.md."""

    def __init__(self, text: str) -> None:
        self.lines = {line: re.findall(r"`([^`]+)`", line) for line in text.splitlines()}

    def lines_on(self, name: str) -> list[str]:
        """Lines with a span that is ``name``, or starts with it as ``name(arguments)`` and ``name ARGUMENT`` do."""
        named = re.compile(rf"{re.escape(name)}(?![\w.-])(?! [a-z])")
        return [line for line, spans in self.lines.items() if any(named.match(span) for span in spans)]

    def missing(self, names: Iterator[str]) -> list[str]:
        found = list(names)
        assert found, "nothing to document was found: the discovery is broken"
        return [name for name in found if not self.lines_on(name)]


@pytest.fixture(scope="module")
def reference(root: Path) -> Reference:
    return Reference((root / "docs/reference.md").read_text(encoding="utf-8"))


def kinds_of(error: type[FedscaleError]) -> Iterator[type[FedscaleError]]:
    """An error class and all below it."""
    yield error
    for child in error.__subclasses__():
        yield from kinds_of(child)


def defined(root: Path, package: str) -> Iterator[type]:
    """Every class that a package defines."""
    for name in measure.importable(root, package):
        yield from (value for value in vars(importlib.import_module(name)).values() if isinstance(value, type) and value.__module__ == name)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings in a model, those of nested tables included."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{field.alias or name}"


def settings(root: Path, package: str) -> Iterator[str]:
    """All settings of a room: the fields of its models that refuse what they do not know, which are the files that people write."""
    found = {kind for kind in defined(root, package) if issubclass(kind, BaseModel) and kind.model_config.get("extra") == "forbid"}
    nested = {field.annotation for model in found for field in model.model_fields.values()}
    for model in found - nested:
        yield from fields(model)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every verb below a command, with the words that one types."""
    children: Mapping[str, click.Command] = getattr(command, "commands", {})
    for name, child in children.items():
        yield from commands(child, f"{path} {name}")
    if not children and not command.hidden:
        yield path, command


def test_exports(reference: Reference) -> None:
    assert len(set(fedscale.__all__)) == len(fedscale.__all__)
    assert [name for name in fedscale.__all__ if not hasattr(fedscale, name)] == []
    assert reference.missing(iter(fedscale.__all__)) == []


def test_errors_with_their_exit_codes(reference: Reference) -> None:
    kinds = list(kinds_of(FedscaleError))
    assert reference.missing(kind.__name__ for kind in kinds) == []
    assert [k.__name__ for k in kinds if not any(f"| {k.exit_code} |" in line for line in reference.lines_on(k.__name__))] == []


@pytest.mark.parametrize("package", ["fedscale", "fedscale_server", "fedscale_client", "fedscale_simulations"])
def test_every_error_is_in_the_one_tree(root: Path, package: str) -> None:
    assert [kind for kind in defined(root, package) if issubclass(kind, Exception) and kind.__module__ != "fedscale.errors"] == []


def test_causes_of_failure(reference: Reference) -> None:
    assert reference.missing(cause.value for cause in Cause) == []


def test_rpcs(reference: Reference, root: Path) -> None:
    found = []
    for path in sorted((root / "protos").rglob("*.proto")):
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            found += [f"{service}.{rpc}" for rpc in re.findall(r"^\s*rpc (\w+)", body, re.MULTILINE)]
    assert reference.missing(iter(found)) == []


def test_commands_with_their_options(reference: Reference) -> None:
    verbs = dict(commands(typer.main.get_command(cli.app), "fedscale"))
    assert reference.missing(iter(verbs)) == []
    for verb, command in verbs.items():
        options = [max(p.opts, key=len) for p in command.params if isinstance(p, click.Option) and not p.hidden]
        line = " ".join(reference.lines_on(verb))
        assert [f"{verb} {option}" for option in options if option != "--help" and f"`{option}" not in line] == []


def test_plan_settings(reference: Reference) -> None:
    assert reference.missing(fields(Plan)) == []


def test_strategies_with_their_arguments(reference: Reference) -> None:
    assert reference.missing(iter(STRATEGIES)) == []
    assert reference.missing(f"strategy.{argument}" for make in STRATEGIES.values() for argument in inspect.signature(make).parameters) == []


def test_metrics(reference: Reference) -> None:
    assert reference.missing(iter(BUILT_IN_METRICS)) == []


@pytest.mark.parametrize(("table", "model"), [("devices", Devices), ("sweep", Sweep), ("tracking", Tracking)])
def test_tables_beside_the_plan(reference: Reference, table: str, model: type[BaseModel]) -> None:
    assert table in BESIDES
    assert reference.missing(fields(model, f"{table}.")) == []


@pytest.mark.parametrize("package", ["fedscale_server", "fedscale_client"])
def test_settings_of_the_rooms(reference: Reference, root: Path, package: str) -> None:
    assert reference.missing(settings(root, package)) == []


def test_links_lead_somewhere(root: Path) -> None:
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    links = [(page, target) for page in pages for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert links
    assert [f"{page.relative_to(root)}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_decisions_are_listed(root: Path) -> None:
    folder = root / "docs/decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(folder.glob("[0-9]*.md")) if f"({path.name})" not in index] == []


def test_the_reference_is_read_by_name() -> None:
    page = Reference("| `fedscale run submit PLAN` | `--json` |\n| `clients.select` |\n| `fed_avg(lr)` |\n| `PlanError` |")
    names = ["fedscale run submit", "clients.select", "fed_avg", "PlanError", "fedscale run", "select", "Plan", "clients"]
    assert page.missing(iter(names)) == ["fedscale run", "select", "Plan", "clients"]
    with pytest.raises(AssertionError, match="discovery is broken"):
        page.missing(iter(()))
