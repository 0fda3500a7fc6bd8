"""Commands that we tell people to type can be typed: those in the pages, in hints and in docstrings."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from fedscale import cli
from tests.architecture.measure import read_rooms
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOUNS = "|".join(cli.NOUNS)
SPAN = re.compile(rf"`(fedscale (?:{NOUNS})\b[^`]*)`")
TYPED = re.compile(rf"\bfedscale (?:{NOUNS})\b[^\n`;,()|]*")
OPTION = re.compile(r"--?[a-z][a-z-]*")


def resolve(words: list[str]) -> tuple[click.Command, list[str], list[str]]:
    """The command behind the words after ``fedscale``, the words that name it, and the rest."""
    command: Any = typer.main.get_command(cli.app)
    path: list[str] = []
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
        path, words = [*path, words[0]], words[1:]
    return command, path, words


def fenced(page: Path) -> Iterator[str]:
    """Command lines in the fenced blocks of a page."""
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield from (line.removeprefix("$ ") for line in block.splitlines() if line.removeprefix("$ ").startswith("fedscale "))


def spans(page: Path) -> Iterator[str]:
    """Command lines in the code spans of a page."""
    yield from SPAN.findall(page.read_text(encoding="utf-8"))


def texts(tree: ast.Module) -> Iterator[str]:
    """Every text of a module, the fixed parts of formatted ones with a placeholder between them."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def advice() -> list[tuple[str, str]]:
    """Command lines in the texts of our own source, and where each stands."""
    return [(module.path, found.strip()) for module in read_rooms(ROOT) for text in texts(module.tree) for found in TYPED.findall(text)]


ADVICE = advice()
BLOCKS = [(page.name, line) for page in PAGES for line in fenced(page)]
MENTIONS = [(page.name, line) for page in PAGES for line in spans(page)]


def unknown_options(command: click.Command, words: list[str]) -> list[str]:
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return [word for word in words if OPTION.fullmatch(word) and word not in known]


@pytest.mark.parametrize(("page", "line"), BLOCKS)
def test_a_command_line_of_a_page_can_be_typed(page: str, line: str) -> None:
    command, path, rest = resolve(shlex.split(line, comments=True)[1:])
    assert not getattr(command, "commands", {}), f"{page}: {line}"
    with command.make_context(" ".join(path), rest) as context:
        assert context.params


@pytest.mark.parametrize(("page", "line"), MENTIONS)
def test_a_command_named_in_a_page_exists(page: str, line: str) -> None:
    command, path, rest = resolve(line.split()[1:])
    assert path, f"{page}: {line}"
    assert not (getattr(command, "commands", {}) and rest and rest[0].islower()), f"{page}: {line}"
    assert unknown_options(command, rest) == []


@pytest.mark.parametrize(("where", "line"), ADVICE, ids=[f"{where}:{line}" for where, line in ADVICE])
def test_a_command_that_we_advise_exists(where: str, line: str) -> None:
    command, path, rest = resolve(line.split()[1:])
    assert path
    verbs = getattr(command, "commands", {})
    assert not (verbs and rest and re.fullmatch(r"[a-z]+", rest[0])), f"{where}: '{rest[0]}' is no verb of {path}"
    assert unknown_options(command, [word.rstrip(".") for word in rest]) == []


def test_there_is_something_to_check() -> None:
    assert len(BLOCKS) >= 10
    assert {"fedscale node join TICKET", "fedscale server init"} <= {line for _, line in MENTIONS + ADVICE}
    assert {Path(where).parts[0] for where, _ in ADVICE} == {"fedscale", "server", "client", "simulations"}


@pytest.mark.parametrize(
    ("line", "found"),
    [("fedscale run sumbit x", ["run"]), ("fedscale run submit job.toml", ["run", "submit"]), ("fedscale node data add x", ["node", "data", "add"])],
)
def test_the_check_follows_the_words(line: str, found: list[str]) -> None:
    assert resolve(line.split()[1:])[1] == found


def test_the_check_sees_options_that_do_not_exist() -> None:
    command, _, rest = resolve(["run", "submit", "job.toml", "--wach", "--watch", "-1"])
    assert unknown_options(command, rest) == ["--wach"]
