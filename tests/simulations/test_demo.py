"""``fedscale demo``: the whole way through real processes, and every step of it by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedscale.errors import Conflict, RunFailed
from fedscale.plan import Plan
from fedscale.record import RoundRecord, RunRecord
from fedscale_simulations import demo
from fedscale_simulations.comparison import Comparison
from fedscale_simulations.demo import MARK, Stage, conclude, leave, prepare
from tests.command import caught, fedscale

COMPARED = Comparison({"north": 0.8, "south": 0.9}, 0.97, 0.98, {"north": 30, "south": 70})
RECORD = RunRecord(
    "demo-1",
    "demo",
    "completed",
    "",
    "",
    "",
    ("north", "south"),
    (RoundRecord(1, "evaluate", ("north", "south"), {}, {"auc": 0.97}, {}, 40.0, 1.0, 500, 900),),
    3.0,
    500,
    900,
    "d",
    {},
)
PATIENCE = 120.0


def processes(folder: Path) -> list[str]:
    """Command lines of other processes that were told of a folder, or work in it as a node's workers do."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = (entry / "cwd").readlink().is_relative_to(folder)
        except OSError:
            continue
        if entry.name != str(os.getpid()) and (inside or str(folder) in words):
            found.append(words)
    return found


def gone(folder: Path) -> bool:
    """Whether no such process is left, once those that were killed are."""
    ends = time.monotonic() + PATIENCE
    while found := processes(folder):
        assert time.monotonic() < ends, found
        time.sleep(0.02)
    return True


# ------------------------------------------------------------------------------------------------------------ the stage


def test_a_stage_is_made_anew_each_time(tmp_path: Path) -> None:
    stage = prepare(tmp_path / "demo")
    stage.log("north").parent.mkdir()
    stage.log("north").touch()
    stage.home("north").mkdir(parents=True)
    kept = tmp_path / "demo/summary.json"
    kept.touch()
    again = prepare(tmp_path / "demo")
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {MARK, "job", "summary.json"}
    plan = Plan.load(again.job)
    assert (plan.job.name, plan.clients.wait_for) == ("demo", 4)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(Conflict, match="something else"):
        prepare(tmp_path)
    done = fedscale("demo", "--out", tmp_path, "--json")
    assert done.error["hint"] == "choose another: fedscale demo --out DIR"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert prepare(tmp_path).job.is_file()


# ------------------------------------------------------------------------------------------------------------ the course


class Script:
    """Stands in for the cast: notes what was asked of it, and answers as the commands would."""

    def __init__(self) -> None:
        self.course: list[str] = []
        self.shown: list[str] = []
        self.tell = self.shown.append

    def call(self, *words: object, show: bool = True, live: bool = False) -> Any:
        self.course.append(" ".join(map(str, words)))
        record = json.loads(RECORD.to_json())
        accounts = [{"epsilon": 3.9}] if "north" in self.course[-1] else []
        return {"ticket": "fs1.SECRETSECRETSECRET", "record": record, "link": "http://127.0.0.1:8472/login#token", "accounts": accounts}

    def start(self, name: str, *words: object, log: Path) -> None:
        self.course.append(f"start {name}")

    def ready(self, name: str, log: Path) -> Any:
        self.course.append(f"ready {name}")
        return {"address": "localhost:1"}


def at(course: list[str], begins: str) -> int:
    return next(number for number, words in enumerate(course) if words.startswith(begins))


def test_a_hospital_joins_declares_and_starts_in_this_order(tmp_path: Path) -> None:
    script: Any = Script()
    demo.open_hospital(script, Stage(tmp_path), "north")
    kinds = ["project invite", "node join", "node data add", "start north"]
    assert [at(script.course, kind) for kind in kinds] == [0, 1, 2, 3]
    home = tmp_path / "sites/north/node"
    assert script.course[1] == f"node join fs1.SECRETSECRETSECRET --home {home}"
    assert "--name north" in script.course[0]
    assert f"--path {tmp_path}/sites/north/patients.csv --label malignant" in script.course[2]
    assert not any("SECRETSECRETSECRET" in line for line in script.shown)


def test_the_coordinator_is_ready_before_anybody_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: Any = Script()
    monkeypatch.setattr(demo, "later", lambda _: lambda *_: ("north", "south"))
    assert demo.set_up(script, Stage(tmp_path)) == ("north", "south")
    course = script.course
    order = [at(course, kind) for kind in ("server init", "start coordinator", "ready coordinator", "project create", "project invite")]
    assert order == sorted(order)
    assert {words for words in course if words.startswith("start")} == {"start coordinator", "start north", "start south"}
    assert "coordinator ready at localhost:1" in script.shown
    assert "watch it in a browser: http://127.0.0.1:8472/login#token" in script.shown


def test_each_hospital_is_asked_for_its_own_ledger(tmp_path: Path) -> None:
    script: Any = Script()
    assert demo.spent(script, Stage(tmp_path), ("north", "south")) == {"north": 3.9}
    assert [words.split(" --home ")[0] for words in script.course] == ["privacy spent"] * 2


def test_training_is_followed_and_its_model_fetched(tmp_path: Path) -> None:
    script: Any = Script()
    assert demo.train(script, Stage(tmp_path)) == RECORD
    assert script.course[0].startswith(f"run submit {tmp_path}/job/job.toml --project demo")
    assert script.course[0].endswith("--watch")
    assert script.course[1].startswith(f"run export demo-1 --out {tmp_path}/model.safetensors")


# ---------------------------------------------------------------------------------------------------------- what is left


def test_the_summary_answers_the_question(tmp_path: Path) -> None:
    left = leave(Stage(tmp_path), RECORD, COMPARED, {"north": 3.5, "south": 3.9}, 12.0)
    assert json.loads((tmp_path / "summary.json").read_text()) == left
    assert left["auc"] == {"alone": {"north": 0.8, "south": 0.9}, "alone_mean": pytest.approx(0.85), "federated": 0.97, "pooled": 0.98}
    assert {key: left[key] for key in ("nodes", "rounds", "bytes_up", "bytes_down", "seconds", "epsilon")} == {
        "nodes": 2,
        "rounds": 1,
        "bytes_up": 500,
        "bytes_down": 900,
        "seconds": 3.0,
        "epsilon": 3.9,
    }
    assert left["epsilon_by_site"] == {"north": 3.5, "south": 3.9}
    page = Path(left["report"]).read_text()
    assert "north alone" in page
    assert "<h2>Privacy</h2>" in page
    assert "own ledger \N{MIDDLE DOT} south" in page
    assert "0.980" in page


def told(compared: Comparison, *, as_json: bool = False) -> str:
    left: dict[str, Any] = {
        "bytes_up": 5000,
        "bytes_down": 900,
        "total_seconds": 12.0,
        "seconds": 3.0,
        "rounds": 12,
        "report": "runs/demo/report.html",
        "epsilon_by_site": {"north": 3.5, "south": 3.912},
    }
    with caught() as (out, _):
        conclude(Stage(Path("runs/demo")), left, compared, as_json=as_json)
    return out.getvalue()


def test_the_last_table(tmp_path: Path) -> None:
    lines = [line.split() for line in told(COMPARED).splitlines() if line.strip()]
    for row in (
        ["north", "alone", "30", "0.800"],
        ["mean", "of", "alone", "0.850"],
        ["federated", "100", "0.970"],
        ["federated", "against", "alone", "+0.120"],
    ):
        assert row in lines
    assert ["federated", "against", "pooled", "-0.010"] in lines
    assert lines[-1] == ["report", "runs/demo/report.html"]
    assert json.loads(told(COMPARED, as_json=True))["data"]["rounds"] == 12


@pytest.mark.parametrize(("federated", "pooled"), [(0.85, 0.86), (0.8, 0.7), (0.9, 0.93)])
def test_a_federation_that_was_not_worth_it_is_a_failure(federated: float, pooled: float) -> None:
    with pytest.raises(RunFailed, match="not worth it"):
        told(Comparison(COMPARED.alone, federated, pooled, COMPARED.examples))


# ------------------------------------------------------------------------------------------------------- the whole of it


@pytest.mark.timeout(900)
@pytest.mark.requires("torch", "sklearn")
def test_four_hospitals_and_a_coordinator(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = fedscale("demo", "--out", folder, "--json")
    left = done.data
    assert (done.code, left["nodes"], left["failures"], left["status"]) == (0, 4, 0, "completed")
    alone = left["auc"]["alone"]
    assert set(alone) == {"north", "east", "south", "west"}
    assert left["auc"]["federated"] > sum(alone.values()) / 4
    assert left["auc"]["federated"] >= left["auc"]["pooled"] - demo.CLOSE_ENOUGH
    # The nodes' own pooled evaluation saw the same held-out patients, so it gives the same area.
    assert left["evaluate.auc"] == pytest.approx(left["auc"]["federated"], abs=1e-9)
    assert json.loads((folder / "summary.json").read_text()) == left
    assert {"report.html", "metrics.csv", "metrics.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert gone(folder)
    assert "$ fedscale node start" in done.err
    assert "fs1." not in "".join(line for line in done.err.splitlines() if "join" not in line)


@pytest.mark.timeout(900)
@pytest.mark.requires("torch", "sklearn")
@pytest.mark.parametrize(("seen", "number"), [("logs/coordinator.out", signal.SIGINT), ("sites/*/node/cache/bundles/*", signal.SIGTERM)])
def test_an_interrupted_demonstration_leaves_no_process(tmp_path: Path, seen: str, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "fedscale", "demo", "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ, start_new_session=True) as process:
        ends = time.monotonic() + PATIENCE
        while not any(folder.glob(seen)) and time.monotonic() < ends:
            time.sleep(0.02)
        assert len(processes(folder)) >= 2
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted")
    assert gone(folder)
