"""The guides: whatever can run here is run in the order in which it stands, the rest is checked against the command line."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# What one guide leaves is what the next begins with.
RUNNABLE = ("guides/researcher.md", "guides/how-to.md")
ASSETS = re.compile(r'(?:src="|rel="stylesheet"[^>]*href="|@import url\(|url\()"?(https?://[^")]+)')


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every block of code."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@pytest.mark.timeout(1800)
@pytest.mark.requires("torch", "sklearn")
def test_what_the_guides_show_runs_as_it_stands(root: Path, tmp_path: Path) -> None:
    count = 0
    for page in (root / "docs" / name for name in RUNNABLE):
        for text in (text for language, text in blocks(page) if language == "json"):
            (tmp_path / "events.json").write_text(text)
        for language, text in blocks(page):
            if language == "python":
                count += bool(run(["-c", text], tmp_path))
            elif language == "sh":
                for line in filter(None, text.splitlines()):
                    count += bool(run(["-m", "fedscale", *shlex.split(line, comments=True)[1:]], tmp_path))
    assert count >= 10
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.timeout(1800)
@pytest.mark.requires("sphinx")
def test_the_pages_are_built_without_a_warning_and_ask_no_other_machine(root: Path, tmp_path: Path) -> None:
    run(["-m", "sphinx", "-q", "-W", "-b", "html", "-d", str(tmp_path / "trees"), str(root / "docs"), str(tmp_path / "site")], root)
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "api.html", "reference.html", "architecture.html", "guides/hospital.html"} <= set(pages)
    assert {name: found for name, text in pages.items() if (found := ASSETS.findall(text))} == {}
    assert "fedscale_simulations.simulator.simulate" in pages["api.html"]
    machines = re.findall(r'<svg role="img" aria-label="([^"]+)"', pages["architecture.html"])
    assert len(machines) == 2
    assert "lost, returned: asked" in machines[0]
    assert "released, commit: committed" in machines[1]


@pytest.mark.requires("sphinx")
def test_diagrams_show_every_move_of_their_tables(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "docs" / "extensions")
    machines = importlib.import_module("machines")
    for name, table in machines.TABLES.items():
        moves, drawn = table(), machines.svg(table())
        states = {before for before, _ in moves} | set(moves.values())
        assert set(machines.places(moves)) == states, name
        assert drawn.count("<rect") == len(states)
        assert drawn.count("marker-end") == len({(before, after) for (before, _), after in moves.items()})
        assert len(set(machines.places(moves).values())) == len(states), "no state covers another"
