"""A new simulation takes no earlier one's place: its folder, and the way back to a run that was interrupted."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from fedscale.cli import compare
from fedscale.errors import ConfigError, Conflict
from fedscale.plan import Plan
from fedscale_simulations import checkpoint, cli, folders
from fedscale_simulations.checkpoint import begun_by
from fedscale_simulations.files import replace_file
from fedscale_simulations.result import Progress
from tests.command import fedscale
from tests.simulations.test_cli import FILES, write_job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path / "job")


def run_in(folder: Path, *, ended: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoint.FILE).write_bytes(b"")
    if ended:
        (folder / compare.FILE).write_text("{}")
    return folder


def interrupt_in_round(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(cli.Show):
        def __call__(self, progress: Progress) -> None:
            super().__call__(progress)
            if progress.number == number:
                raise KeyboardInterrupt

    monkeypatch.setattr(cli, "Show", Impatient)
    monkeypatch.setattr(checkpoint, "CHEAP", float("inf"))


def test_what_a_run_leaves_has_the_names_that_are_looked_for() -> None:
    assert (folders.BEGUN, folders.ENDED) == (checkpoint.FILE, compare.FILE)
    assert {folders.BEGUN, folders.ENDED} <= FILES


def test_a_second_run_gets_a_folder_of_its_own(job: Path) -> None:
    first = fedscale("simulate", job, "--json").data
    model = Path(first["folder"], "model.safetensors").read_bytes()
    second = fedscale("simulate", job, "--set", "strategy.rounds=1", "--json").data
    assert (first["folder"], second["folder"]) == ("runs/half", "runs/half-2")
    assert Path("runs/half/model.safetensors").read_bytes() == model
    assert {path.name for path in Path("runs/half-2").iterdir()} == FILES
    assert fedscale("run", "compare", "runs/half", "runs/half-2", "--json").data["runs"].keys() == {"half", "half-2"}


def test_a_folder_that_is_given_and_holds_a_run_is_left_alone(job: Path) -> None:
    assert fedscale("simulate", job, "--out", "mine").code == 0
    before = {path.name: path.read_bytes() for path in Path("mine").iterdir()}
    done = fedscale("simulate", job, "--out", "mine", "--set", "strategy.rounds=1", "--json")
    assert (done.code, done.error["type"], done.error["where"]) == (6, "Conflict", "mine")
    assert "--resume" in done.error["hint"]
    assert {path.name: path.read_bytes() for path in Path("mine").iterdir()} == before


def test_a_folder_with_other_files_may_be_given(job: Path) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    assert fedscale("simulate", job, "--out", "mine").code == 0
    assert Path("mine/notes.txt").read_text() == "kept"


def test_a_file_is_no_folder(job: Path) -> None:
    Path("mine").write_text("kept")
    done = fedscale("simulate", job, "--out", "mine")
    assert (done.code, done.err) == (6, "error: the folder is a file\n  where mine\n  next  choose another folder with --out\n")
    assert Path("mine").read_text() == "kept"


def test_a_checkpoint_that_cannot_be_read_is_no_plans(job: Path) -> None:
    Path("runs/half").mkdir(parents=True)
    Path("runs/half/checkpoint.safetensors").write_text("torn")
    assert not begun_by(Path("runs/half"), Plan.load(job))
    assert not begun_by(Path("elsewhere"), Plan.load(job))
    assert fedscale("simulate", job, "--json").data["folder"] == "runs/half-2"


def test_a_run_that_was_interrupted_goes_on_in_its_folder(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fedscale("simulate", job, "--json").data["model_digest"]
    with monkeypatch.context() as patch:
        interrupt_in_round(3, patch)
        told = fedscale("simulate", job).err.splitlines()[-1]
    again = f"fedscale simulate {job} --out runs/half-2 --resume"
    assert told == f"interrupted; go on where it stopped: {again}"
    other = fedscale("simulate", job, "--set", "strategy.rounds=1", "--json")
    assert (other.data["folder"], "interrupted" in other.err) == ("runs/half-3", False), "a run of another plan cannot be gone on with so"
    Path("runs/half-3/checkpoint.safetensors").unlink()
    same = fedscale("simulate", job)
    assert same.err.splitlines()[0].startswith("runs/half-2 holds a run that was interrupted; to go on with it: fedscale simulate")
    resumed = fedscale(*shlex.split(again)[1:], "--json").data
    assert (resumed["folder"], resumed["model_digest"]) == ("runs/half-2", whole)


def test_without_a_folder_the_last_run_goes_on(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fedscale("simulate", job, "--json").data["model_digest"]
    with monkeypatch.context() as patch:
        interrupt_in_round(2, patch)
        assert fedscale("simulate", job).code == 130
    resumed = fedscale("simulate", job, "--resume", "--json").data
    assert (resumed["folder"], resumed["model_digest"]) == ("runs/half-2", whole)


def test_a_disk_that_fills_up_costs_nothing_but_time(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fedscale("simulate", job, "--out", "whole", "--json").data["model_digest"]
    written: list[Path] = []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > 3:
            raise ConfigError("a file cannot be written", where=str(path), why="No space left on device") from OSError(errno.ENOSPC, "")
        replace_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replace_file", full)
        patch.setattr(checkpoint, "CHEAP", float("inf"))
        error = fedscale("simulate", job, "--json").error
    again = f"fedscale simulate {job} --json --out runs/half --resume"
    assert (error["exit_code"], error["hint"]) == (2, f"when that is mended, go on where it stopped: {again}")
    assert fedscale(*shlex.split(again)[1:]).data["model_digest"] == whole


def test_a_run_that_cannot_begin_leaves_no_folder(job: Path) -> None:
    assert fedscale("simulate", job, "--engine", "warp").code == 2
    assert not Path("runs/half").exists()


@pytest.mark.parametrize(
    ("missing", "told"), [(True, "pip install 'fedscale-fl[ray]'"), (False, "no Ray cluster can be reached")], ids=["no package", "no cluster"]
)
def test_without_a_cluster_nothing_is_trained_and_nothing_written(job: Path, monkeypatch: pytest.MonkeyPatch, *, missing: bool, told: str) -> None:
    away = SimpleNamespace(is_initialized=lambda: False, init=Mock(side_effect=ConnectionError))
    monkeypatch.setitem(sys.modules, "ray", None if missing else away)
    monkeypatch.setattr("fedscale_simulations.simulator.World.next", Mock(side_effect=AssertionError("a client is asked")))
    for words in ([], ["--out", "mine"]):
        done = fedscale("simulate", job, "--engine", "ray", *words)
        assert (done.code, told in done.err) == (2, True), done.err
    assert not list(Path("runs").iterdir())
    assert not Path("mine").exists()


def test_only_runs_of_that_name_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders.latest("risk") == Path("runs/risk")
    for name in ("risk-2", "risky", "risk-old", "risk2"):
        run_in(Path("runs", name))
    assert folders.latest("risk") == Path("runs/risk-2")


def test_of_many_that_ask_each_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def begin(_: int) -> Path:
        with folders.claimed("risk") as folder:
            return run_in(folder)

    with ThreadPoolExecutor(8) as lanes:
        got = list(lanes.map(begin, range(24)))
    assert len(set(got)) == 24
    assert Path("runs/risk") in got


def test_an_empty_folder_of_a_run_that_was_killed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/risk").mkdir(parents=True)
    Path("runs/other").write_text("a file")
    with folders.claimed("risk") as first, folders.claimed("risk") as second, folders.claimed("other") as third:
        assert (first, second, third) == (Path("runs/risk"), Path("runs/risk-2"), Path("runs/other-2"))
    assert [path.name for path in Path("runs").iterdir()] == ["other"]


def test_where_folders_cannot_be_locked_an_empty_one_may_be_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.EBADF, "Bad file descriptor")))
    Path("runs/risk").mkdir(parents=True)
    with folders.claimed("risk") as first, folders.claimed("risk", Path("mine")) as second:
        assert (first, second) == (Path("runs/risk-2"), Path("mine"))


def test_a_folder_has_room_for_one_simulation_at_a_time(job: Path) -> None:
    run_in(Path("runs/half"), ended=False)
    for folder, words in ((Path("runs/half"), ["--resume"]), (Path("mine"), ["--out", "mine"])):
        folder.mkdir(exist_ok=True)
        with folders.at_work(folder):
            done = fedscale("simulate", job, *words)
            assert (done.code, done.err.splitlines()[:2]) == (6, ["error: another simulation is at work in the folder", f"  where {folder}"])
            assert not folders.interrupted(Path("runs/half")) or folder == Path("mine")
    assert folders.interrupted(Path("runs/half"))
    assert Path("mine").is_dir(), "a folder that was there stays"


def test_a_folder_that_cannot_be_made_or_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"the folder cannot be made \(Not a directory\)"), folders.claimed("risk"):
        pass
    Path("mine").mkdir()
    monkeypatch.setattr(os, "open", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(ConfigError, match=r"the folder cannot be read \(Permission denied\)"), folders.claimed("risk", Path("mine")):
        pass


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_is_known_by_what_it_leaves(tmp_path: Path, *, ended: bool) -> None:
    folder = run_in(tmp_path / "mine", ended=ended)
    assert folders.holds_run(folder)
    assert folders.interrupted(folder) is not ended
    with pytest.raises(Conflict, match="holds a run already"), folders.claimed("risk", folder):
        pass
