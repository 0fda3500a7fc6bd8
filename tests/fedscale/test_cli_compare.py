"""``fedscale run compare``: folders in, one table and one page out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedscale.cli.compare import titles
from fedscale.report import write
from tests.command import fedscale
from tests.fedscale.sample_run import round_of, run_of


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    for name, loss in (("small", 0.5), ("large", 0.25)):
        write(run_of(round_of(1, "evaluate", metrics={"loss": loss}), name=name), tmp_path / "runs" / name)
    return [Path("runs/small"), Path("runs/large")]


def test_runs_stand_side_by_side(folders: list[Path]) -> None:
    done = fedscale("run", "compare", *folders)
    assert done.code == 0
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.startswith((" small", " large"))}
    assert "0.500" in rows["small"]
    assert rows["large"][rows["large"].index("0.250") + 1] == "\N{BLACK STAR}"
    assert "Comparison of 2 runs" in Path("comparison.html").read_text(encoding="utf-8")


def test_a_comparison_as_data(folders: list[Path]) -> None:
    data = fedscale("run", "compare", *folders, "--out", "there/page.html", "--json").data
    assert {name: run["evaluate.loss"] for name, run in data["runs"].items()} == {"small": 0.5, "large": 0.25}
    assert data["page"] == "there/page.html"
    assert Path("there/page.html").is_file()


def test_folders_of_one_name_are_told_apart(folders: list[Path]) -> None:
    assert titles([Path("a/x"), Path("b/x"), Path("y")]) == ["a/x", "b/x", "y"]
    assert titles(folders) == ["small", "large"]


@pytest.mark.parametrize(
    ("spoil", "code", "told"),
    [
        (lambda path: path.unlink(), 6, "no run in the folder"),
        (lambda path: path.write_text("{"), 2, "malformed"),
        (lambda path: path.write_bytes(b"\xff"), 6, "no run"),
    ],
)
def test_a_folder_without_a_readable_run_is_named(folders: list[Path], spoil: object, code: int, told: str) -> None:
    spoil(folders[1] / "metrics.json")  # type: ignore[operator]
    done = fedscale("run", "compare", *folders)
    assert (done.code, told in done.err, "runs/large/metrics.json" in done.err) == (code, True, True)
    assert not Path("comparison.html").exists()


def test_a_run_is_not_compared_with_itself(folders: list[Path]) -> None:
    assert fedscale("run", "compare", folders[0], folders[0]).code == 2
