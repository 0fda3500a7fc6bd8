"""Every block of code in every page is of a kind that is tried: commands, settings, Python, data; what is a drawing is counted."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import fedscale as fs
from fedscale import cli
from fedscale.plan import Plan
from fedscale.privacy.events import from_json
from fedscale.sinks import read as read_sinks
from fedscale_server.settings import FILE, load
from fedscale_server.store.store import Store
from fedscale_simulations.sweep.space import Search

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w{}-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", flags=re.MULTILINE | re.DOTALL)
SPHINX = {"{eval-rst}", "{machine}", "{toctree}"}
SHELLS = {"sh", "text", ""}
# Programs of others that may stand beside ours.
OTHERS = {"make", "pip", "python", "tensorboard"}
# Blocks that nobody types: they show how things hang together.
DRAWINGS = {"docs/data-model.md": 5, "docs/decisions/README.md": 1, "docs/scaling.md": 1}
# Executed by test_readme.py and test_guides.py as they stand.
EXECUTED = {"README.md", "docs/guides/researcher.md", "docs/guides/how-to.md"}


@dataclass(frozen=True)
class Block:
    """A block of code: which page it is of, its language and text without indentation."""

    page: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip()]

    @property
    def drawn(self) -> bool:
        """Whether it holds no command."""
        return self.language in SHELLS and self.lines[0].split()[0] not in {"fedscale", *OTHERS}


def pages(root: Path) -> Iterator[Path]:
    yield from (root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md")))


def blocks(root: Path) -> list[Block]:
    """All blocks of all pages but those that sphinx itself understands."""
    found = [(page.relative_to(root).as_posix(), match) for page in pages(root) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [
        Block(page, match["language"], re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE))
        for page, match in found
        if match["language"] not in SPHINX
    ]


def of(root: Path, language: str) -> list[Block]:
    return [block for block in blocks(root) if block.language == language]


def test_no_block_is_of_a_kind_that_nobody_tries(root: Path) -> None:
    found = blocks(root)
    assert {block.language for block in found} == {*SHELLS, "python", "toml", "json", "sql"}
    assert Counter(block.page for block in found if block.drawn) == DRAWINGS
    fences = sum(len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)) for page in pages(root))
    assert fences == 2 * sum(len(FENCE.findall(page.read_text(encoding="utf-8"))) for page in pages(root)), "every fence was read"


def test_every_command_that_is_shown_exists_with_its_options(root: Path) -> None:
    shown = [(block.page, line) for block in blocks(root) if block.language in SHELLS and not block.drawn for line in block.lines]
    assert len(shown) >= 60
    for page, line in shown:
        program, *words = shlex.split(line.replace("'--", "--"), comments=True)
        if program == "fedscale":
            command: Any = typer.main.get_command(cli.app)
            while words and not words[0].startswith("-") and (nouns := getattr(command, "commands", None)):
                assert words[0] in nouns, (page, line)
                command = nouns[words.pop(0)]
            known = {name for option in command.params if isinstance(option, click.Option) for name in (*option.opts, *option.secondary_opts)}
            assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in known] == [], (page, line)
        elif program == "make":
            assert re.search(f"^{words[0]}:", (root / "Makefile").read_text(), flags=re.MULTILINE), (page, line)
        else:
            assert program in OTHERS, (page, line)


def plan_of(tables: dict[str, Any]) -> Plan:
    return Plan.model_validate({"job": {"name": "shown"}, **tables})


def test_every_table_of_settings_is_one_that_is_read(root: Path, tmp_path: Path) -> None:
    kinds: Counter[str] = Counter()
    for block in of(root, "toml"):
        tables = tomllib.loads(block.text)
        if "tracking" in tables:
            (tmp_path / "job.toml").write_text(f'[job]\nname = "shown"\n{block.text}')
            assert read_sinks(tmp_path / "job.toml").sinks == tuple(tables["tracking"]["sinks"])
            kinds["sinks"] += 1
        elif "sweep" in tables:
            (tmp_path / "job.toml").write_text(f'[job]\nname = "shown"\n[evaluate]\nmetrics = ["accuracy"]\n{block.text}')
            assert Search(tmp_path / "job.toml").monitor == tables["sweep"]["monitor"]
            kinds["sweep"] += 1
        elif "replicas" in tables:
            (tmp_path / FILE).write_text(block.text)
            assert load(tmp_path).replicas is True
            kinds["server"] += 1
        else:
            inner = tables["tool"]["fedscale"] if "tool" in tables else tables
            assert set(inner) <= plan_of(inner).model_fields_set
            kinds["plan"] += 1
    assert kinds == {"plan": 3, "sinks": 1, "server": 1, "sweep": 1}


def test_every_list_of_releases_is_one_that_is_read(root: Path) -> None:
    lists = [json.loads(block.text) for block in of(root, "json")]
    assert [len(from_json(listed)) for listed in lists] == [1]


def test_every_statement_is_one_of_the_servers_own_tables(root: Path, tmp_path: Path) -> None:
    Store.open(f"sqlite:///{tmp_path}/server.db").close()
    statements = [block.text for block in of(root, "sql")]
    with closing(sqlite3.connect(tmp_path / "server.db")) as database:
        database.create_function("now", 0, lambda: "2026-01-01")
        assert [bool(database.execute(f"EXPLAIN {text}").fetchall()) for text in statements] == [True]


@pytest.mark.requires("torch", "flower")
def test_every_piece_of_python_is_executed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(fs, "simulate", lambda *_, **given: asked.append(given["strategy"]))
    rest = [block for block in of(root, "python") if block.page not in EXECUTED]
    from flwr.serverapp.strategy import FedAvg

    for block in rest:
        exec(compile(block.text, block.page, "exec"), {"app": None, "sites": None, "MyStrategy": FedAvg})  # noqa: S102 - our own pages
    assert [block.page for block in rest] == ["docs/flower.md"] * 2
    assert len(asked) == 4
    assert all(isinstance(strategy, type(fs.fed_avg())) for strategy in asked)
