"""``fedscale run`` and the folders that simulations leave: what works on them does, and what does not says what does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedscale.errors import Cause, Failure
from fedscale.record import RunRecord
from fedscale.report import write
from tests.command import fedscale
from tests.fedscale.sample_run import round_of, run_of
from tests.server.fake_coordinator import Coordinator, serving
from tests.server.test_cli_run import detail, info

LOST = Failure(Cause.DATA, "the features hold NaN (column 'age')")
REASON = "round 1 (train): 0 of 2 nodes answered, 1 are needed: " + "north, south: data: the features hold NaN (column 'age'); " * 3


def broken() -> RunRecord:
    """A run whose first round failed."""
    return run_of(round_of(1, "train", answered=(), failures={"north": LOST, "south": LOST}), name="broken", status="failed", reason=REASON)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three simulations: one that completed, one whose first round failed, one that was interrupted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDSCALE_PROFILE", raising=False)
    write(run_of(round_of(1, "evaluate", metrics={"loss": 0.25}), name="small"), tmp_path / "runs/small")
    write(broken(), tmp_path / "runs/broken")
    (tmp_path / "runs/half way").mkdir()
    (tmp_path / "runs/half way/checkpoint.safetensors").touch()
    return tmp_path / "runs"


@pytest.fixture
def coordinator(tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    fake = Coordinator(answers={"GetRun": detail(), "ListRuns": detail()})
    with serving(fake, tmp_path / "tls") as profile:
        monkeypatch.setenv("FEDSCALE_PROFILE", str(profile))
        yield fake


def test_a_folder_is_shown_without_a_coordinator(folders: Path) -> None:
    done = fedscale("run", "show", "runs/small")
    assert (done.code, "loss 0.250" in done.out, "finished after 1 round" in done.out) == (0, True, True)
    assert fedscale("run", "show", f"{folders}/small", "--json").data["record"]["name"] == "small"


def test_a_first_round_that_failed_is_counted_for_each_site_and_its_reason_is_told_as_a_whole(folders: Path) -> None:
    done = fedscale("run", "show", "runs/broken")
    counts = [line.split()[:3] for line in done.out.splitlines() if line.startswith((" north", " south"))]
    assert counts == [["north", "0", "1"], ["south", "0", "1"]]
    assert "failed after 0 rounds" in done.out
    assert " ".join(REASON.split()) in " ".join(done.out.split())


def test_runs_in_a_folder_are_listed_whatever_became_of_them(folders: Path) -> None:
    (folders / "small/metrics.json").write_text("{")
    listed = {run["run"]: run for run in fedscale("run", "list", "runs", "--json").data}
    assert {name: run["status"] for name, run in listed.items()} == {
        "runs/broken": "failed", "runs/half way": "not over", "runs/small": "damaged"
    }  # fmt: skip
    assert listed["runs/half way"]["reason"].endswith("go on with it: fedscale simulate JOB --out 'runs/half way' --resume")
    assert [run["run"] for run in fedscale("run", "list", "runs/broken", "--json").data] == ["runs/broken"]
    shown = fedscale("run", "list", "runs").out
    assert "[...]" in shown
    assert shown.splitlines()[-1] == "a reason as a whole: fedscale run show RUN"
    assert fedscale("run", "list", "elsewhere").out.startswith("no run has left anything in elsewhere")


@pytest.mark.parametrize(("verb", "made"), [("report", "report.html"), ("card", "card.json"), ("track", "csv/*.csv")])
def test_what_is_made_of_a_folder_lies_in_it_or_where_one_says(folders: Path, verb: str, made: str) -> None:
    words = ["--sink", "csv"] if verb == "track" else []
    assert fedscale("run", verb, "runs/small", *words).code == 0
    assert fedscale("run", verb, "runs/small", *words, "--out", "else").code == 0
    assert list((folders / "small").glob(made))
    assert list(Path("else").glob(made))


@pytest.mark.parametrize("verb", ["watch", "stop", "pause", "resume"])
def test_what_needs_a_run_that_goes_on_says_what_there_is_for_a_folder(folders: Path, verb: str) -> None:
    error = fedscale("run", verb, "runs/half way", "--json").error
    assert (error["where"], error["hint"]) == ("runs/half way", "see: fedscale run show 'runs/half way'")


def test_the_model_of_a_simulation_is_there_already(folders: Path) -> None:
    assert fedscale("run", "export", "runs/small", "--json").error["hint"] == "take runs/small/model.safetensors, which is such a file"


def test_a_simulation_that_is_not_over_says_how_to_go_on_with_it(folders: Path) -> None:
    for words in (["show", "runs/half way"], ["compare", "runs/small", "runs/half way"]):
        done = fedscale("run", *words)
        assert (done.code, "fedscale simulate JOB --out 'runs/half way' --resume" in done.err) == (6, True)
    assert "no run in the folder" in fedscale("run", "show", "runs/none").err


def test_without_a_profile_folders_are_spoken_of(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fedscale("run", "list", "--json").error["hint"].endswith("; what simulations left is listed by: fedscale run list runs")
    monkeypatch.chdir(folders)
    assert fedscale("run", "show", "small", "--json").error["hint"].endswith("; the folder of that name is shown by: fedscale run show small/")
    assert fedscale("run", "show", "small/").code == 0
    assert "folder of that name" not in fedscale("run", "show", "large", "--json").error["hint"]


def test_an_id_is_asked_of_the_coordinator_even_beside_a_folder_of_its_name(coordinator: Coordinator, tmp_path: Path) -> None:
    write(run_of(name="stale"), tmp_path / "risk-1")
    assert fedscale("run", "show", "risk-1", "--json").data["run"]["run"] == "risk-1"
    assert json.loads((tmp_path / "risk-1/summary.json").read_text())["name"] == "stale"
    assert fedscale("run", "report", "risk-1").out.splitlines()[0] == "runs/risk-1/summary.json"
    assert [method for method, _ in coordinator.asked] == ["GetRun", "GetRun"]
    assert info("running").run == "risk-1"
