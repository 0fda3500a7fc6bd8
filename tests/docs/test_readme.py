"""What README shows is run as it stands, so that it cannot go stale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

MOST_LINES = 13


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.timeout(1200)
@pytest.mark.requires("torch", "sklearn")
def test_the_example_in_python_runs_and_leaves_its_report(root: Path, tmp_path: Path) -> None:
    (example,) = blocks(root, "python")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"evaluate .*accuracy ([0-9.]+)", done.stdout)
    assert accuracy is not None, done.stdout
    assert float(accuracy[1]) > 0.9
    assert "<svg" in (tmp_path / "digits.html").read_text(encoding="utf-8")


def test_the_example_in_python_is_short(root: Path) -> None:
    (example,) = blocks(root, "python")
    joined = re.sub(r"\(\n\s+|,\n\s+|,?\n\)", " ", example)
    assert len([line for line in joined.splitlines() if line.strip()]) <= MOST_LINES


@pytest.mark.timeout(1200)
@pytest.mark.requires("torch", "sklearn")
def test_the_first_commands_of_researchers_and_hospitals_work(root: Path, tmp_path: Path) -> None:
    shown = [line.split("#")[0].split() for block in blocks(root, "sh") for line in block.splitlines()]
    first = [words for words in shown if words[:2] in (["fedscale", "doctor"], ["fedscale", "init"], ["fedscale", "simulate"])]
    assert [words[1] for words in first] == ["doctor", "init", "simulate"]
    for words in first:
        done = subprocess.run([sys.executable, "-m", "fedscale", *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()
