"""Commands that are imported when they are asked for: help and completion come from a table alone."""

from __future__ import annotations

import difflib
import importlib
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import click
import typer
from typer.core import TyperGroup

from fedscale.cli.examples import below_help
from fedscale.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is and what it does.

    Args:
        target: ``module:name`` of a function, or of a group made by ``group``.
        help: one line; the first of the function's docstring.
    """

    target: str
    help: str


def later(target: str) -> Any:
    """What ``module:name`` stands for, imported now: for what is too heavy to import before it is known to be needed."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def load(entry: Entry, name: str) -> click.Command:
    """Import a command."""
    thing = later(entry.target)
    if not isinstance(thing, typer.Typer):
        function, thing = thing, typer.Typer(add_completion=False)
        thing.command()(function)
    command = typer.main.get_command(thing)
    command.name = name
    return command


class _Loaded(UserDict[str, Any]):
    """The commands of a table by name, imported when looked at."""

    def __getitem__(self, name: str) -> click.Command:
        if isinstance(self.data[name], Entry):
            self.data[name] = load(self.data[name], name)
        command: click.Command = self.data[name]
        return command


class Lazy(TyperGroup):
    """A group that imports a command only to run it."""

    entries: ClassVar[Mapping[str, Entry]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Loaded(self.entries)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's shape
        """The names, in the order of the table."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's shape
        """Name and line of help of a command, enough for lists; ``resolve_command`` brings the command."""
        entry = self.entries.get(cmd_name)
        return None if entry is None else click.Command(cmd_name, help=entry.help, short_help=entry.help)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that the first word names.

        Raises:
            ConfigError: there is none of this name.
        """
        name = args[0]
        if name in self.entries:
            command = self.commands[name]
            command.epilog = below_help(" ".join([*ctx.command_path.split()[1:], name]))
            return name, command, args[1:]
        if name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        close = difflib.get_close_matches(name, self.entries, n=1)
        hint = f"did you mean '{ctx.command_path} {close[0]}'?" if close else f"see: {ctx.command_path} --help"
        raise ConfigError(f"there is no command '{ctx.command_path} {name}'", hint=hint)


def group(
    text: str,
    entries: Mapping[str, Entry],
    *,
    callback: Callable[..., None] | None = None,
    cls: type[Lazy] = Lazy,
    completion: bool = False,
    epilog: str | None = None,
) -> typer.Typer:
    """A group of the commands in a table, described by ``text``; ``callback`` has the group's own options, ``cls`` may add to how it is invoked."""
    kind = type("Group", (cls,), {"entries": entries})
    made = typer.Typer(cls=kind, help=text, epilog=epilog, no_args_is_help=True, add_completion=completion, pretty_exceptions_enable=False)
    made.callback()(callback or _nothing)
    return made


def _nothing() -> None:
    """The group itself does nothing."""
