"""``fedscale run`` against a coordinator with canned answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedscale import bundle, cli, console, progress
from fedscale.errors import BundleError, Cause, Conflict, Failure, NotFound, PlanError
from fedscale.flower.deployment import job_of
from fedscale.plan import Plan
from fedscale.proto.v1 import bulk_pb2
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.record import RoundRecord, RunRecord
from fedscale.vector import Schema
from fedscale.wire.codec import digest_of
from fedscale_server.packing import pack_job
from fedscale_simulations.job import importable
from tests.command import Done, Terminal, caught, fedscale
from tests.flower import samples
from tests.server.fake_coordinator import Coordinator, serving

JOB = """[job]
name = "risk"

[strategy]
rounds = 2

[clients]
min_per_round = 2
"""
LOST = Failure(Cause.LOST, "the connection broke", hint="see its log")


def info(status: str = "completed", reason: str = "", **more: Any) -> pb.RunInfo:
    values: dict[str, Any] = {"phase": "train", "number": 1, "rounds": 2, "created": 1.7e9} | more
    return pb.RunInfo(run="risk-1", project="heart", name="risk", status=status, reason=reason, **values)


def record(status: str = "completed", reason: str = "") -> RunRecord:
    rounds = (
        RoundRecord(1, "train", ("north", "south"), {}, {"loss": 0.5}, {}, 9.0, 2.0, 1000, 2000),
        RoundRecord(1, "evaluate", ("north",), {"south": LOST}, {"loss": 0.4, "auc": 0.9}, {"north": {"auc": 0.8}}, 9.0, 1.0, 10, 20),
    )
    return RunRecord("risk-1", "risk", status, reason, "", "", ("north", "south"), rounds, 3.0, 1010, 2020, "", {})


def detail(status: str = "completed", reason: str = "", **more: Any) -> pb.RunDetail:
    return pb.RunDetail(info=info(status, reason), record=record(status, reason).to_json(), **more)


def events(status: str = "completed", reason: str = "") -> list[pb.RunEvent]:
    failed = {"cause": "lost", "what": "the connection broke", "where": "", "hint": "see its log"}
    course: list[tuple[str, str, dict[str, Any]]] = [
        ("opened", "", {"cohort": ["north", "south"], "target": 2, "quorum": 1}),
        ("answered", "north", {"bytes": 8}),
        ("failed", "south", failed),
        (
            "closed",
            "",
            {"answered": ["north"], "failures": {"south": failed}, "metrics": {"loss": 0.5}, "seconds": 1.0, "bytes_up": 8, "bytes_down": 8},
        ),
        ("finished", "", {"status": status, "reason": reason}),
    ]
    rows = enumerate(course, 1)
    return [pb.RunEvent(sequence=n, at=1e9 + n, kind=kind, node=node, phase="train", number=1, detail=json.dumps(d)) for n, (kind, node, d) in rows]


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    fake = Coordinator(
        answers={
            "ListProjects": pb.ListProjectsReply(projects=[pb.Project(name="heart")]),
            "ListNodes": pb.ListNodesReply(nodes=[pb.NodeInfo(name="north", connected=True, datasets=["default"]), pb.NodeInfo(name="south")]),
            "ListRuns": pb.ListRunsReply(runs=[info("running"), info("failed", "nobody was there", number=0)]),
            "GetRun": detail(),
            "SubmitRun": info("running"),
            "SteerRun": info("paused"),
        },
        streams=[events()],
    )
    with serving(fake, tmp_path / "tls") as folder:
        monkeypatch.setenv("FEDSCALE_PROFILE", str(folder))
        monkeypatch.chdir(tmp_path)
        yield fake


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.toml").write_text(JOB)
    (folder / "app.py").write_text("app = None\n")
    return folder / "job.toml"


def asked(coordinator: Coordinator) -> list[str]:
    return [method for method, _ in coordinator.asked]


# ----------------------------------------------------------------------------------------------------- list, show, steer


def test_list(coordinator: Coordinator) -> None:
    done = fedscale("run", "list", "--project", "heart")
    rows = [line.split() for line in done.out.splitlines() if line.startswith(" risk-1")]
    assert rows[0][:4] == ["risk-1", "heart", "running", "1/2"]
    assert rows[1][2] == "failed"
    assert "nobody was there" in done.out
    assert coordinator.last("ListRuns").project == "heart"
    assert [run["status"] for run in fedscale("run", "list", "--json").data] == ["running", "failed"]
    coordinator.answers["ListRuns"] = pb.ListRunsReply()
    assert "fedscale run submit" in fedscale("run", "list").out


def test_show(coordinator: Coordinator) -> None:
    coordinator.answers["GetRun"] = detail("failed", "too few nodes", model="abc")
    done = fedscale("run", "show", "risk-1")
    assert done.code == 0
    assert "loss 0.400, auc 0.900" in done.out
    assert "too few nodes" in done.out
    assert "run risk-1 failed after 1 round" in done.out
    data = fedscale("run", "show", "risk-1", "--json").data
    assert (data["run"]["status"], data["model"], data["record"]["rounds"][1]["failures"]["south"]["cause"]) == ("failed", "abc", "lost")


def test_show_what_is_not_there(coordinator: Coordinator) -> None:
    coordinator.answers["GetRun"] = NotFound("no run 'risk-2'", hint="did you mean 'risk-1'?")
    done = fedscale("run", "show", "risk-2")
    assert (done.code, done.err) == (6, "error: no run 'risk-2'\n  next  did you mean 'risk-1'?\n")


@pytest.mark.parametrize("action", ["stop", "pause", "resume"])
def test_steer(coordinator: Coordinator, action: str) -> None:
    done = fedscale("run", action, "risk-1")
    assert (done.code, done.out) == (0, "run risk-1 is paused\n")
    assert coordinator.last("SteerRun") == pb.SteerRunRequest(run="risk-1", action=action)
    assert fedscale("run", action, "risk-1", "--json").data["status"] == "paused"


@pytest.mark.parametrize("action", ["stop", "pause", "resume"])
def test_steer_dry_run(coordinator: Coordinator, action: str) -> None:
    coordinator.answers["GetRun"] = detail("running")
    assert fedscale("run", action, "risk-1", "--dry-run").out == f"would {action} run risk-1, which is running\n"
    coordinator.answers["GetRun"] = detail("completed")
    assert fedscale("run", action, "risk-1", "--dry-run", "--json").error["type"] == "Conflict"
    assert "SteerRun" not in asked(coordinator)


def test_stop_gives_its_reason(coordinator: Coordinator) -> None:
    fedscale("run", "stop", "risk-1", "--reason", "wrong data")
    assert coordinator.last("SteerRun").reason == "wrong data"


def test_a_list_of_runs_shortens_reasons_that_show_tells_in_full(coordinator: Coordinator) -> None:
    reason = "round 2 (train): 0 of 3 nodes answered, 3 are needed: " + "aachen: policy: the cap would be passed; " * 5
    coordinator.answers["ListRuns"] = pb.ListRunsReply(runs=[info("failed", reason)])
    coordinator.answers["GetRun"] = detail("failed", reason)
    shown = fedscale("run", "list").out
    assert "0 of 3 nodes answered" in shown
    assert max(map(len, shown.splitlines())) < len(reason)
    assert reason.strip() in fedscale("run", "show", "risk-1").out
    assert fedscale("run", "list", "--json").data[0]["reason"] == reason


def waiting(coordinator: Coordinator, **nodes: list[str]) -> None:
    """A run that has not begun, until somebody has watched it, and what the nodes that are there offer."""
    before = replace(record("running"), rounds=(), plan_toml=Plan.from_toml(JOB).to_toml()).to_json()
    coordinator.streams = [events()]
    coordinator.answers["GetRun"] = lambda: (
        pb.RunDetail(info=info("running", phase="init", number=0), record=before) if coordinator.streams else detail()
    )
    there = [pb.NodeInfo(name=name, project="heart", connected=True, datasets=offered) for name, offered in nodes.items()]
    coordinator.answers["ListNodes"] = pb.ListNodesReply(nodes=there)


def test_a_run_that_has_not_begun_says_what_it_waits_for(coordinator: Coordinator) -> None:
    waiting(coordinator, north=["lung"], south=["default"])
    told = "it waits for 1 more node with dataset 'default' (others offer lung)"
    assert told in fedscale("run", "show", "risk-1").out
    assert fedscale("run", "show", "risk-1", "--json").data["waiting"] == told
    assert fedscale("run", "watch", "risk-1").err.startswith(f"run risk-1 has not begun: {told}\n")
    waiting(coordinator, north=["lung"], south=["default"])
    assert fedscale("run", "watch", "risk-1", "--jsonl").err == ""
    waiting(coordinator, north=["default"], south=["default"])
    assert fedscale("run", "show", "risk-1", "--json").data["waiting"] == ""


def test_nobody_is_asked_what_a_run_that_goes_on_or_is_over_waits_for(coordinator: Coordinator) -> None:
    del coordinator.answers["ListNodes"]
    assert fedscale("run", "show", "risk-1", "--json").data["waiting"] == ""
    before = replace(record("stopped"), rounds=(), plan_toml=Plan.from_toml(JOB).to_toml())
    coordinator.answers["GetRun"] = pb.RunDetail(info=info("stopped", phase="init", number=0), record=before.to_json())
    assert fedscale("run", "show", "risk-1", "--json").data["waiting"] == ""
    error = fedscale("run", "export", "risk-1", "--json").error
    assert (error["what"], error["why"]) == ("run risk-1 has no model", "it stopped before the first round")


# ---------------------------------------------------------------------------------------------------------------- watch


def test_watch_tells_a_run_to_its_end(coordinator: Coordinator) -> None:
    done = fedscale("run", "watch", "risk-1")
    assert done.code == 0
    assert done.err.splitlines() == [
        "train 1/2       south failed: lost: the connection broke; see its log",
        "train 1/2       1 of 2 nodes  loss 0.500  1 s  16 B",
        "completed",
    ]
    assert "all sites" in done.out
    assert "run risk-1 completed after 1 round in 3 s" in done.out


def test_watch_ends_with_one_when_the_run_failed(coordinator: Coordinator) -> None:
    coordinator.streams = [events("failed", "too few nodes")]
    coordinator.answers["GetRun"] = detail("failed", "too few nodes")
    done = fedscale("run", "watch", "risk-1")
    assert done.code == 1
    assert "all sites" in done.out
    assert done.err.splitlines()[-4:] == [
        "error: run risk-1 failed",
        "  where project heart",
        "  why   too few nodes",
        "  next  see: fedscale run show risk-1",
    ]


def test_watch_as_one_envelope(coordinator: Coordinator) -> None:
    assert fedscale("run", "watch", "risk-1", "--json").data["record"]["status"] == "completed"
    coordinator.streams = [events("stopped", "enough")]
    coordinator.answers["GetRun"] = detail("stopped", "enough")
    done = fedscale("run", "watch", "risk-1", "--json")
    assert (done.code, done.error["what"], done.error["why"]) == (1, "run risk-1 stopped", "enough")
    assert json.loads(done.out)["data"]["run"]["status"] == "stopped"


def test_watch_as_a_stream(coordinator: Coordinator) -> None:
    done = fedscale("run", "watch", "risk-1", "--jsonl", "--after", "2")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert [line["kind"] for line in lines] == ["opened", "answered", "failed", "closed", "finished"]
    assert lines[2]["detail"]["cause"] == "lost"
    assert coordinator.last("WatchRun").after == 2
    coordinator.streams = [events("failed", "x")]
    coordinator.answers["GetRun"] = detail("failed", "x")
    assert fedscale("run", "watch", "risk-1", "--jsonl").code == 1


def test_watch_on_a_terminal_draws_a_bar(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with caught(Terminal(), Terminal()) as (out, err):
        assert console.animated()
        code = cli.main(["run", "watch", "risk-1"])
    assert code == 0
    assert "risk-1: train 1/2" in err.getvalue()
    assert "completed after 1 round" in out.getvalue()


def test_leaving_a_watch_says_that_the_run_goes_on(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Bar, "update", update)
    done = fedscale("run", "watch", "risk-1")
    assert (done.code, done.err) == (130, "interrupted; the run goes on; watch it again: fedscale run watch risk-1\n")


# --------------------------------------------------------------------------------------------------------------- submit


def test_submit_sends_the_folder_and_prints_the_run(coordinator: Coordinator, job: Path) -> None:
    done = fedscale("run", "submit", job, "--set", "strategy.rounds=5")
    assert (done.code, done.out) == (0, "risk-1\n")
    assert "fedscale run watch risk-1" in done.err
    request = coordinator.last("SubmitRun")
    assert request.project == "heart"
    assert Plan.from_toml(request.plan).strategy.rounds == 5
    assert len(request.key) >= 16
    assert bundle.read(coordinator.blobs[request.bundle]) == {"app.py": b"app = None\n", "job.toml": JOB.encode()}


def test_submitting_again_is_another_run_unless_it_has_the_same_key(coordinator: Coordinator, job: Path) -> None:
    keys = set()
    for words in ([], [], ["--key", "mine"], ["--key", "mine"]):
        fedscale("run", "submit", job, *words)
        keys.add(coordinator.last("SubmitRun").key)
    assert len(keys) == 3
    assert "mine" in keys


def test_submit_and_watch(coordinator: Coordinator, job: Path) -> None:
    done = fedscale("run", "submit", job, "--watch")
    assert done.code == 0
    assert done.err.startswith("submitted risk-1 to project heart, where it waits for 1 more node with dataset 'default'")
    assert "completed after 1 round" in done.out


@pytest.mark.parametrize(
    ("datasets", "told"),
    [
        ({"north": ["default"], "south": ["default"]}, "submitted to project heart; follow it"),
        ({"north": ["lung"], "south": ["heart", "default"]}, "waits for 1 more node with dataset 'default' (others offer heart, lung); follow it"),
        ({}, "waits for 2 more nodes with dataset 'default'; follow it"),
    ],
)
def test_submit_says_what_the_run_waits_for(coordinator: Coordinator, job: Path, datasets: dict[str, list[str]], told: str) -> None:
    nodes = [pb.NodeInfo(name=name, project="heart", connected=True, datasets=offered) for name, offered in datasets.items()]
    coordinator.answers["ListNodes"] = pb.ListNodesReply(nodes=nodes)
    assert told in fedscale("run", "submit", job).err


def test_submit_dry_run_sends_nothing(coordinator: Coordinator, job: Path) -> None:
    data = fedscale("run", "submit", job, "--dry-run", "--json").data
    assert (data["nodes"], data["needed"], data["files"], data["epsilon"]) == (["north"], 2, ["app.py", "job.toml"], None)
    assert data["starts"] == "not yet: it waits for 1 more node with dataset 'default'"
    assert fedscale("run", "submit", job, "--dry-run", "--set", "clients.min_per_round=1", "--json").data["starts"] == "at once"
    assert "fedavg" in fedscale("run", "submit", job, "--dry-run").out
    assert set(asked(coordinator)) == {"ListProjects", "ListNodes"}


def test_submit_dry_run_says_what_each_site_is_asked_for_and_what_becomes_of_one_that_cannot(coordinator: Coordinator, job: Path) -> None:
    """Caps are the sites' own business: what is known here is the need."""
    private = [
        word
        for name, value in {"epsilon": 3, "delta": 1e-6, "unit": '"patient"', "metrics": '"exact"'}.items()
        for word in ("--set", f"privacy.{name}={value}")
    ]
    done = fedscale("run", "submit", job, "--dry-run", *private)
    needs = next(line for line in done.out.splitlines() if line.startswith("each site needs"))
    assert needs.split(None, 3)[3].strip() == (
        "epsilon 3 at delta 1e-06 for each patient; a site whose cap has less room refuses before its first round, and nothing of it is spent"
    )
    data = fedscale("run", "submit", job, "--dry-run", *private, "--json").data
    assert (data["epsilon"], data["delta"], data["unit"]) == (3.0, 1e-6, "patient")
    assert "a site with a cap keeps them back" in done.out
    assert "a site with a cap" not in fedscale("run", "submit", job, "--dry-run", *private, "--set", "evaluate.every=0").out
    assert "each site needs" not in fedscale("run", "submit", job, "--dry-run").out


@pytest.mark.parametrize(
    ("template", "epsilon"), [("tabular", None), ("image", None), ("text", None), ("survival", None), ("sklearn", None), ("hospitals", 4.0)]
)
def test_a_template_could_be_submitted_as_it_is(coordinator: Coordinator, template: str, epsilon: float | None) -> None:
    fedscale("init", "mine", "--template", template)
    data = fedscale("run", "submit", "mine/job.toml", "--dry-run", "--json").data
    assert (data["job"], data["files"], data["epsilon"]) == ("mine", ["app.py", "job.toml"], epsilon)


@pytest.mark.parametrize(("projects", "hint"), [([], "make one"), (["heart", "lung"], "one of: heart, lung")])
def test_submit_needs_to_know_the_project(coordinator: Coordinator, job: Path, projects: list[str], hint: str) -> None:
    coordinator.answers["ListProjects"] = pb.ListProjectsReply(projects=[pb.Project(name=name) for name in projects])
    error = fedscale("run", "submit", job, "--json").error
    assert error["exit_code"] == 2
    assert hint in error["hint"]
    assert fedscale("run", "submit", job, "--project", "lung").code == 0


def test_a_wrong_plan_is_told_by_file_and_line_before_anything_is_sent(coordinator: Coordinator, job: Path) -> None:
    job.write_text(JOB.replace("rounds", "round"))
    error = fedscale("run", "submit", job, "--json").error
    assert (error["type"], error["where"], error["exit_code"]) == ("PlanError", f"{job}:5", 2)
    assert asked(coordinator) == []


def test_a_refused_bundle_ends_the_submission(coordinator: Coordinator, job: Path) -> None:
    coordinator.verdict = bulk_pb2.Receipt(verdict=bulk_pb2.Receipt.REJECTED, reason="too new")
    assert fedscale("run", "submit", job, "--json").error["why"] == "too new"
    assert "SubmitRun" not in asked(coordinator)


# -------------------------------------------------------------------------------------------------------------- packing


def packed(job: Path) -> set[str]:
    return set(bundle.read(pack_job(job, Plan.load(job))))


def test_packing_leaves_out_results_and_hidden_files(job: Path) -> None:
    for name in ("runs/risk/report.html", ".git/config", "__pycache__/app.pyc", "lib/runs/kept.py", "lib/__init__.py"):
        (job.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (job.parent / name).write_text("x")
    assert packed(job) == {"app.py", "job.toml", "lib/runs/kept.py", "lib/__init__.py"}


def test_packing_is_the_same_after_a_simulation(job: Path) -> None:
    before = pack_job(job, Plan.load(job))
    (job.parent / "runs").mkdir()
    (job.parent / "runs/summary.json").write_text("{}")
    assert pack_job(job, Plan.load(job)) == before


@pytest.mark.parametrize(
    "name",
    ["key.pem", "deep/server.key", "fedscale-node/node.toml", "fedscale-server/server.toml", "prod.env", "id_ed25519", "deep/credentials.json"],
)
def test_packing_refuses_keys_and_homes(job: Path, name: str) -> None:
    (job.parent / name).parent.mkdir(parents=True, exist_ok=True)
    (job.parent / name).write_text("secret")
    with pytest.raises(BundleError, match="must not leave this machine") as caught_error:
        pack_job(job, Plan.load(job))
    assert name.startswith(caught_error.value.where)


def test_packing_refuses_what_is_no_file(job: Path) -> None:
    os.mkfifo(job.parent / "pipe")
    with pytest.raises(BundleError, match="pipe: a file of the job cannot be read") as caught_error:
        pack_job(job, Plan.load(job))
    assert caught_error.value.hint == "keep what is not code out of the job's folder"


def test_tables_in_a_jobs_folder_are_pointed_at_before_they_leave(coordinator: Coordinator, job: Path) -> None:
    """They may be somebody's patients."""
    assert "will be given" not in fedscale("run", "submit", job, "--dry-run").err
    (job.parent / "data").mkdir()
    for name in ("a.csv", "b.parquet", "c.NPZ", "d.csv", "notes.txt"):
        (job.parent / "data" / name).write_text("x")
    told = fedscale("run", "submit", job, "--dry-run").err
    assert "every site will be given data/a.csv, data/b.parquet, data/c.NPZ, 1 more:" in told


def test_packing_refuses_what_is_too_large_before_copying_it(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BYTES", 1 << 20)
    with (job.parent / "scans.npz").open("wb") as file:
        file.truncate(2 << 20)
    with pytest.raises(BundleError, match="more than 1 MiB"):
        pack_job(job, Plan.load(job))


def test_packing_needs_the_app(job: Path) -> None:
    plan = Plan.from_toml(JOB.replace("[job]", '[job]\napp = "model.net:app"'))
    with pytest.raises(PlanError, match=r"no module for app 'model\.net:app'"):
        pack_job(job, plan)
    (job.parent / "model/net").mkdir(parents=True)
    (job.parent / "model/net/__init__.py").write_text("")
    assert "model/net/__init__.py" in bundle.read(pack_job(job, plan))


# ------------------------------------------------------------------------------------------------------------------ lead


@pytest.mark.requires("flower")
@pytest.mark.parametrize(
    ("settings", "edit", "what"),
    [
        ((), "# more", "run risk-1 was begun with another app, or with other settings of it"),
        (("lr=0.25",), "", "run risk-1 was begun with another app, or with other settings of it"),
        (("clients.wait_for=2",), "", "run risk-1 was begun with another plan"),
    ],
    ids=["code", "config", "plan"],
)
def test_a_run_is_led_on_by_the_app_that_began_it(coordinator: Coordinator, tmp_path: Path, settings: tuple[str, ...], edit: str, what: str) -> None:
    folder = samples.write(tmp_path / "app")
    begun = replace(record("running"), plan_toml=job_of(folder, led=True)[1].to_toml())
    coordinator.answers["GetRun"] = pb.RunDetail(info=info("running"), record=begun.to_json())
    with (folder / "sample" / "server_app.py").open("a") as file:
        file.write(edit)
    error = fedscale("run", "lead", folder, "--run", "risk-1", *(word for given in settings for word in ("--set", given)), "--json").error
    assert (error["type"], error["what"], error["hint"]) == ("Conflict", what, "give the same directory, as it was, and the same --set as then")


@pytest.mark.requires("flower")
def test_a_run_that_the_coordinator_leads_is_not_taken_over(coordinator: Coordinator, tmp_path: Path) -> None:
    folder = samples.write(tmp_path / "app")
    begun = replace(record("running"), plan_toml=job_of(folder)[1].to_toml())
    coordinator.answers["GetRun"] = pb.RunDetail(info=info("running"), record=begun.to_json())
    error = fedscale("run", "lead", folder, "--run", "risk-1", "--json").error
    assert (error["type"], error["what"], error["hint"]) == (
        "Conflict",
        "run risk-1 is led by the coordinator",
        "follow it: fedscale run watch risk-1",
    )


@pytest.fixture
def led(coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An app whose ServerApp has come to a model, as the leader of a run that was begun with these settings."""
    folder = samples.write(tmp_path / "an app")
    begun = replace(record(), plan_toml=job_of(folder, ["lr=0.25", "clients.wait_for=2"], led=True)[1].to_toml())
    coordinator.answers["GetRun"] = pb.RunDetail(info=info(), record=begun.to_json())
    ended = SimpleNamespace(reason="", metrics=[("train", 1, {"loss": 0.5})], outcome=SimpleNamespace(arrays={"w": np.ones(3)}))
    monkeypatch.setattr("fedscale.flower.lead.lead", lambda *_: ended)
    return folder


def led_on(app: Path, *words: object) -> Done:
    return fedscale("run", "lead", app, "--run", "risk-1", "--set", "lr=0.25", "--set", "clients.wait_for=2", *words)


@pytest.mark.requires("flower")
def test_a_model_is_on_disk_before_the_coordinator_drops_what_it_was_made_of(coordinator: Coordinator, led: Path, tmp_path: Path) -> None:
    found: list[bool] = []

    def concluded() -> pb.RunInfo:
        found.append((tmp_path / "deep" / "out" / "model.safetensors").exists())
        return info()

    coordinator.answers["Conclude"] = concluded
    done = led_on(led, "--out", tmp_path / "deep" / "out")
    assert (done.code, found) == (0, [True]), done.err
    assert json.loads(coordinator.last("Conclude").metrics) == [["train", 1, {"loss": 0.5}]]
    kept = (tmp_path / "deep" / "out" / "model.safetensors").read_bytes()
    assert coordinator.last("Conclude").model == digest_of(kept), "the record says which model it is"
    names = {"summary.json", "metrics.csv", "metrics.json", "report.html", "model.safetensors", "card.html", "card.md", "card.json"}
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == names
    assert load_file(tmp_path / "deep" / "out" / "model.safetensors")["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.requires("flower")
def test_an_app_that_cannot_be_loaded_begins_no_run(coordinator: Coordinator, tmp_path: Path) -> None:
    """A run without a leader would wait for one."""
    folder = samples.write(tmp_path / "app", samples.MESSAGES, "")
    (folder / "sample" / "server_app.py").write_text("import no_such_package\n")
    with importable(folder):
        error = fedscale("run", "lead", folder, "--project", "ward", "--json").error
    assert (error["type"], "the module 'sample.server_app' cannot be imported" in error["what"], "no_such_package" in error["why"]) == (
        "AppError",
        True,
        True,
    )
    assert "SubmitRun" not in [method for method, _ in coordinator.asked]


@pytest.mark.requires("flower")
def test_a_leader_whose_folder_refuses_leaves_the_run_as_it_is(coordinator: Coordinator, led: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = led_on(led, "--out", tmp_path / "taken" / "out", "--json")
    go_on = f"fedscale run lead '{led}' --run risk-1 --set lr=0.25 --set clients.wait_for=2"
    assert (done.error["type"], done.error["hint"]) == ("ConfigError", f"the run waits for its leader; go on: {go_on}")
    assert done.error["where"].startswith(str(tmp_path / "taken"))
    assert f"if this is interrupted, go on with: {go_on}" in done.err
    assert "Conclude" not in [method for method, _ in coordinator.asked]


# ------------------------------------------------------------------------------------------------------- report, export


def test_report_leaves_all_files(coordinator: Coordinator, tmp_path: Path) -> None:
    done = fedscale("run", "report", "risk-1")
    names = {"summary.json", "metrics.csv", "metrics.json", "report.html"}
    assert set(done.out.splitlines()) == {f"runs/risk-1/{name}" for name in names}
    assert {path.name for path in (tmp_path / "runs/risk-1").iterdir()} == names
    assert set(fedscale("run", "report", "risk-1", "--out", "elsewhere", "--json").data) == names


def test_export_writes_the_model(coordinator: Coordinator, tmp_path: Path) -> None:
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, np.float32)}
    schema = Schema.of(arrays)
    model = schema.pack(arrays).tobytes()
    coordinator.blobs[digest_of(model)] = model
    coordinator.answers["GetRun"] = detail(model=digest_of(model), schema=schema.to_json())
    data = fedscale("run", "export", "risk-1", "--out", "deep/model.safetensors", "--json").data
    assert data == {"path": "deep/model.safetensors", "digest": digest_of(model), "tensors": 2, "bytes": 32}
    stored = load_file(tmp_path / "deep/model.safetensors")
    assert {name: values.tolist() for name, values in stored.items()} == {name: values.tolist() for name, values in arrays.items()}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.safetensors"]
    assert fedscale("run", "export", "risk-1").out == "risk-1.safetensors\n"


@pytest.mark.parametrize(
    ("job", "what", "hint"),
    [
        (JOB, "run risk-1 has no model yet", "follow it: fedscale run watch risk-1"),
        (
            '[job]\nname = "risk"\n[strategy]\nname = "led"\n',
            "the coordinator has no model of run risk-1",
            "it lies where the leader was started: runs/risk-1/model.safetensors, or in the folder of its --out",
        ),
    ],
    ids=["ours", "led"],
)
def test_export_without_a_model(coordinator: Coordinator, job: str, what: str, hint: str) -> None:
    coordinator.answers["GetRun"] = pb.RunDetail(info=info("running"), record=replace(record(), plan_toml=Plan.from_toml(job).to_toml()).to_json())
    error = fedscale("run", "export", "risk-1", "--json").error
    assert (error["type"], error["exit_code"], error["what"], error["hint"]) == (Conflict.__name__, 6, what, hint)


def test_a_model_that_cannot_be_written_leaves_no_half_of_it(coordinator: Coordinator, tmp_path: Path) -> None:
    schema, model = Schema.of({"w": np.zeros(1, np.float32)}), b"\0" * 4
    coordinator.blobs[digest_of(model)] = model
    coordinator.answers["GetRun"] = detail(model=digest_of(model), schema=schema.to_json())
    (tmp_path / "out/model").mkdir(parents=True)
    error = fedscale("run", "export", "risk-1", "--out", "out/model", "--json").error
    assert (error["type"], error["exit_code"]) == ("ConfigError", 2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_a_model_other_than_announced_is_not_written(coordinator: Coordinator, tmp_path: Path) -> None:
    schema = Schema.of({"w": np.zeros(1, np.float32)})
    coordinator.blobs["0" * 64] = b"abcd"
    coordinator.answers["GetRun"] = detail(model="0" * 64, schema=schema.to_json())
    assert fedscale("run", "export", "risk-1", "--out", "model", "--json").error["type"] == "ProtocolError"
    assert not (tmp_path / "model").exists()


def test_hostile_names_and_reasons_cannot_steer_a_terminal(coordinator: Coordinator) -> None:
    coordinator.answers["ListRuns"] = pb.ListRunsReply(runs=[info("failed", "\x1b]0;owned\x07")])
    coordinator.streams = [[pb.RunEvent(kind="failed", node="\x1b[2J", detail=json.dumps({"what": "\x1b[31m"}))]]
    coordinator.answers["GetRun"] = detail("failed", "\x1b[2J")
    for words in (["list"], ["show", "risk-1"], ["watch", "risk-1"]):
        done = fedscale("run", *words)
        assert "\x1b" not in done.out + done.err, words
