"""``fedscale simulate``: templates run, files are left, an interrupted simulation goes on."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from fedscale import progress
from fedscale.errors import Cause, ConfigError, Failure
from fedscale.record import RoundRecord
from fedscale_simulations import checkpoint, cli
from fedscale_simulations.result import Progress
from tests.command import caught, fedscale

APP = """
import numpy as np
from fedscale.data import Population, from_arrays
from fedscale.learner import Phase, Result

class Half:
    def run(self, work):
        if work.arrays is None:
            return Result({"w": np.zeros(2, np.float32)}, 0)
        if work.number == FAILS:
            raise ValueError("no")
        loss = np.array([float(len(work.data))])
        if work.phase is Phase.EVALUATE:
            return Result(None, len(work.data), dict.fromkeys(work.metrics, loss))
        return Result({"w": work.arrays["w"] + np.float32(0.5)}, len(work.data), {"loss": loss})

app = Half()

def population(clients, seed):
    rows = np.arange(20.0).reshape(10, 2)
    return Population.of({f"site-{n}": from_arrays(rows + n, np.arange(10) % 2) for n in range(clients or 3)})
"""
CARD = {"card.html", "card.json", "card.md"}
FILES = CARD | {"checkpoint.safetensors", "metrics.csv", "metrics.json", "model.safetensors", "report.html", "summary.json"}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path / "job")


def write_job(folder: Path, *, fails: int = 0, rounds: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(APP.replace("FAILS", str(fails)))
    (folder / "job.toml").write_text(f'[job]\nname = "half"\n[strategy]\nrounds = {rounds}\n')
    return folder / "job.toml"


def test_a_simulation_shows_its_rounds_and_leaves_everything(job: Path) -> None:
    done = fedscale("simulate", job)
    assert done.code == 0
    rounds = [line.split()[:2] for line in done.err.splitlines()]
    assert rounds == [[phase, f"{number}/3"] for number in (1, 2, 3) for phase in ("train", "evaluate")]
    assert done.out.startswith("half: completed after 3 rounds with 3 clients")
    assert done.out.splitlines()[-1] == "report    runs/half/report.html"
    assert {path.name for path in Path("runs/half").iterdir()} == FILES


def test_a_simulation_as_data(job: Path, tmp_path: Path) -> None:
    data = fedscale("simulate", job, "--clients", "5", "--out", "there", "--set", "strategy.rounds=1", "--set", "job.name=other", "--json").data
    assert (data["name"], data["nodes"], data["rounds"], data["status"]) == ("other", 5, 1, "completed")
    assert data["report"] == "there/report.html"
    assert json.loads((tmp_path / "there/summary.json").read_text())["model_digest"] == data["model_digest"]


@pytest.mark.parametrize(
    ("words", "clients"),
    [
        (["--partition", "iid", "--clients", "4"], 4),
        (["--partition", "dirichlet:0.5", "--clients", "3"], 3),
        (["--partition", "shards:2", "--clients", "2"], 2),
        (["--partition", "quantity:1", "--clients", "2"], 2),
        (["--partition", "column:b"], 3),
    ],
)
def test_a_table_may_stand_in_for_the_population(job: Path, tmp_path: Path, words: list[str], clients: int) -> None:
    (tmp_path / "rows.csv").write_text("a,b,y\n" + "".join(f"{n}.5,{n % 3},{n % 2}\n" for n in range(60)))
    assert fedscale("simulate", job, "--data", "rows.csv", "--label", "y", *words, "--json").data["nodes"] == clients


def test_rows_with_gaps_and_columns_of_text_are_left_out_when_asked(job: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,who,y\n" + "".join(f"{n if n != 7 else ''},Ann,{n % 2}\n" for n in range(60)))
    words = ("simulate", job, "--data", "rows.csv", "--label", "y")
    assert "next  encode it, leave its column out by naming the others in columns" in fedscale(*words).err
    assert "--missing drop" in fedscale(*words, "--columns", "a").err
    assert fedscale(*words, "--columns", " a", "--missing", "drop", "--clients", "29", "--json").data["nodes"] == 29
    assert fedscale(*words, "--columns", "a", "--missing", "drop", "--clients", "60").code == 2, "there are 59 rows"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--data", "rows.csv"], 2, "needs the column to predict"),
        (["--data", "rows.csv", "--label", "y"], 2, "rows.csv"),
        (["--label", "y"], 2, "--label is given, and no file to spread"),
        (["--partition", "iid"], 2, "--partition is given, and no file to spread"),
        (["--columns", "a"], 2, "--columns is given, and no file to spread"),
        (["--missing", "drop"], 2, "--missing is given, and no file to spread"),
        (["--set", "strategy.rounds=none"], 2, "strategy.rounds"),
        (["--set", "rounds"], 2, "write it as table.key=value"),
        (["--resume"], 6, "no checkpoint to resume from"),
        (["--resume", "--out", "elsewhere"], 6, "elsewhere"),
    ],
)
def test_a_misused_simulation(job: Path, words: list[str], code: int, told: str) -> None:
    done = fedscale("simulate", job, *words)
    assert done.code == code
    assert told in done.err


def test_an_unknown_partition_or_option_is_told(job: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,y\n" + "1.5,0\n2.5,1\n" * 20)
    wrong = {
        "dirichle:1": "did you mean 'dirichlet'?",
        "iid:3": "'iid' takes no value",
        "shards": "write --partition shards:2",
        "dirichlet:much": "is not a number",
    }
    for partition, told in wrong.items():
        done = fedscale("simulate", job, "--data", "rows.csv", "--label", "y", "--partition", partition)
        assert (done.code, told in done.err) == (2, True), done.err


def test_what_an_app_prints_is_no_result(job: Path, tmp_path: Path) -> None:
    chatty = APP.replace("FAILS", "0").replace("        loss =", '        print("at work")\n        loss =')
    (tmp_path / "job/app.py").write_text('import os\nprint("imported")\nos.system("echo from a child")\n' + chatty)
    words = [sys.executable, "-m", "fedscale", "simulate", str(job), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["data"]["status"] == "completed"
    assert {"imported", "from a child", "at work"} <= set(done.stderr.splitlines())


def test_a_missing_job_names_the_next_step(job: Path) -> None:
    assert fedscale("simulate", "none.toml", "--json").error["hint"] == "give the path of a job.toml"


def test_a_failed_simulation_ends_with_one_and_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = write_job(tmp_path / "job", fails=2)
    done = fedscale("simulate", job, "--json")
    assert (done.code, done.error["type"]) == (1, "RunFailed")
    assert "round 2 (train)" in done.error["why"]
    assert "ValueError" in done.error["why"]
    assert json.loads(done.out)["data"]["rounds"] == 1
    assert Path("runs/half/report.html").is_file()


def test_ctrl_c_leaves_something_that_goes_on(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fedscale("simulate", job, "--json").data["model_digest"]

    class Impatient(cli.Show):
        def __call__(self, progress: Progress) -> None:
            super().__call__(progress)
            if progress.number == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(cli, "Show", Impatient)
    monkeypatch.setattr(checkpoint, "CHEAP", float("inf"))  # a slow disk must not cost the last round
    broken = fedscale("simulate", job, "--out", "again", "--set", "job.name=half")
    assert broken.code == 130
    told = f"interrupted; go on where it stopped: fedscale simulate {job} --out again --set job.name=half --resume"
    assert broken.err.splitlines()[-1] == told
    monkeypatch.undo()
    monkeypatch.chdir(job.parents[1])
    resumed = fedscale(*shlex.split(told.partition(": ")[2])[1:], "--json")
    assert resumed.data["model_digest"] == whole
    assert resumed.err.splitlines()[0].startswith("train 3/3")


@pytest.mark.parametrize("begun", [True, False])
def test_who_cannot_write_is_told_to_go_on_where_there_is_something_to_go_on_with(job: Path, monkeypatch: pytest.MonkeyPatch, *, begun: bool) -> None:
    monkeypatch.setattr(checkpoint.Keeper, "keep", Mock(side_effect=ConfigError("a file cannot be written", why="No space left on device")))
    monkeypatch.setattr(cli, "begun", lambda _: begun)
    broken = fedscale("simulate", job)
    assert (broken.code, "a file cannot be written" in broken.err) == (2, True)
    assert ("go on where it stopped" in broken.err) == begun


def test_ctrl_c_before_the_first_round_promises_nothing(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "Show", lambda *_: type("Stop", (), {"rounds": 0, "__call__": interrupt})())
    assert fedscale("simulate", job).err == "interrupted\n"


def test_failures_of_a_crowd_are_cut() -> None:
    failures = {f"client-{n}": Failure(Cause.CODE, "ValueError", "app.py:3") for n in range(9)}
    closed = RoundRecord(1, "train", ("a",), failures, {}, {}, 1.0, 1.0, 0, 0)
    with caught() as (_, err), progress.Bar("simulating") as bar:
        cli.Show(bar)(Progress(1, 2, "train", 9, 10, closed))
    lines = err.getvalue().splitlines()
    assert lines[0] == "train 1/2       client-0 failed: code: app.py:3: ValueError"
    assert lines[-2:] == ["train 1/2       and 4 more failed", "train 1/2       1 of 10 nodes    1 s  0 B"]
    assert len(lines) == 7


class Bar:
    """Keeps what would be drawn."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fractions: list[float] = []

    def note(self, text: str, style: str = "") -> None:
        pass

    def update(self, fraction: float, text: str, at: float) -> None:
        self.texts.append(text)
        self.fractions.append(fraction)


def test_the_bar_tells_how_far_how_fast_and_how_well(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fedscale_simulations.cli.time.monotonic", lambda: now[0])
    bar = Bar()
    show = cli.Show(bar)  # type: ignore[arg-type]
    closed = RoundRecord(1, "train", ("a",), {}, {"loss": 0.25}, {}, 1.0, 1.0, 0, 0)
    for seconds, step in [
        (101.0, Progress(1, 2, "train", 10, 20)),
        (101.01, Progress(1, 2, "train", 11, 20)),
        (102.0, Progress(1, 2, "train", 20, 20, closed)),
        (104.0, Progress(1, 2, "evaluate", 4, 8)),
        (108.0, Progress(2, 2, "train", 8, 20)),
    ]:
        now[0] = seconds
        show(step)
    assert bar.texts == [
        "train 1/2, 10 of 20 clients, 10 clients/s",
        "train 1/2, 20 of 20 clients, 10 clients/s, loss 0.250",
        "evaluate 1/2, 4 of 8 clients, 6 clients/s, loss 0.250",
        "train 2/2, 8 of 20 clients, 4 clients/s, loss 0.250",
    ]
    assert bar.fractions == sorted(bar.fractions)


def test_a_job_with_devices_takes_place_in_virtual_time(job: Path) -> None:
    plain = fedscale("simulate", job, "--out", "plain", "--json").data
    moved = fedscale("simulate", job, "--out", "moved", "--set", "devices.speed=0.01", "--json").data
    assert moved["seconds"] > 100 > plain["seconds"]
    assert (moved["model_digest"], moved["plan_hash"]) == (plain["model_digest"], plain["plan_hash"])
    assert fedscale("simulate", job, "--set", "devices.sped=1").code == 2


@pytest.mark.parametrize(("text", "value"), [("2", 2), ("0.5", 0.5), ("1e1", 10), ("age", "age"), ("", "")])
def test_options_of_a_partition_are_numbers_where_they_can_be(text: str, value: Any) -> None:
    assert cli._number(text) == value
    assert isinstance(cli._number(text), type(value))


def test_a_table_needs_a_label() -> None:
    assert cli._table(None, "", "", None, None) is None
    with pytest.raises(ConfigError, match="column to predict"):
        cli._table(Path("rows.csv"), "", "", None, None)


def offline(*_: object, **__: object) -> None:
    raise AssertionError("a template asks the network for something")


@pytest.mark.requires("torch", "sklearn")
@pytest.mark.parametrize(
    ("template", "clients", "metric", "at_least"),
    [
        ("tabular", 3, "auc", 0.75),
        ("image", 2, "accuracy", 0.9),
        ("text", None, "accuracy", 0.65),
        ("survival", None, "alive_after_a_year", 0.7),
        ("sklearn", None, "accuracy", 0.75),
        ("hospitals", None, "auc", 0.98),
    ],
)
def test_templates_learn(template: str, clients: int | None, metric: str, at_least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, offline)
    fedscale("init", "job", "--template", template)
    words = ["--clients", clients] if clients else []
    data = fedscale("simulate", "job/job.toml", *words, "--json").data
    assert (data["nodes"], data["failures"]) == (clients or 4, 0)
    assert data[f"evaluate.{metric}"] >= at_least


@pytest.mark.requires("torch", "flower")
def test_the_template_of_a_flower_app_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fedscale("init", "app", "--template", "flower")
    data = fedscale("simulate", "app", "--set", "num-server-rounds=6 lr=0.3", "--json").data
    assert (data["nodes"], data["rounds"], data["failures"], data["folder"]) == (4, 6, 0, "runs/app")
    assert data["evaluate.accuracy"] >= 0.7
    assert fedscale("simulate", "app", "--label", "y").code == 2


@pytest.mark.requires("torch", "sklearn")
def test_the_hospitals_are_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fedscale("init", "job", "--template", "hospitals")
    assert fedscale("simulate", "job/job.toml", "--clients", "9", "--json").error["what"] == "there are 4 hospitals, not 9"
