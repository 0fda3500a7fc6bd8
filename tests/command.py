"""Commands run in this process, with what they print caught and their exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click
import typer

from fedscale import cli


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The data of the one envelope on stdout."""
        envelope = json.loads(self.out)
        assert envelope["ok"] is True, envelope
        return envelope["data"]

    @property
    def error(self) -> dict[str, Any]:
        """The error of the one envelope on stdout, checked against the exit code."""
        envelope = json.loads(self.out)
        assert envelope["ok"] is False, envelope
        assert set(envelope["error"]) == {"type", "what", "where", "why", "hint", "exit_code"}
        assert envelope["error"]["exit_code"] == self.code
        error: dict[str, Any] = envelope["error"]
        return error


class Terminal(io.StringIO):
    """A stream that says somebody is looking."""

    def isatty(self) -> bool:
        return True


@contextmanager
def caught(out: io.StringIO | None = None, err: io.StringIO | None = None) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Both streams, redirected."""
    streams = out or io.StringIO(), err or io.StringIO()
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield streams


def fedscale(*words: object) -> Done:
    """Run ``fedscale`` with these words."""
    with caught() as (out, err):
        code = cli.main([str(word) for word in words])
    return Done(code, out.getvalue(), err.getvalue())


def verbs(command: click.Command | None = None, path: str = "") -> dict[str, click.Command]:
    """Every verb of the command line, imported, by the words that one types behind ``fedscale``."""
    command = command or typer.main.get_command(cli.app)
    children: dict[str, click.Command] = dict(getattr(command, "commands", {}))
    found = {path.strip(): command} if not children else {}
    for name, child in children.items():
        found |= verbs(child, f"{path} {name}")
    return found
