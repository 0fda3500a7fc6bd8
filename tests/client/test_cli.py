"""``fedscale node`` against a coordinator on the real wire."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fedscale.cli.logs import configure
from fedscale.errors import AccessDenied, FedscaleError, ProtocolError, Unreachable
from fedscale_client import cli_doctor, cli_start, declarations
from fedscale_client.chronicle import Chronicle
from fedscale_client.credentials import Credentials
from fedscale_client.facts import exposed
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from fedscale_client.options import opened
from tests.client.conftest import write_csv
from tests.client.coordinator import FEDERATION, Coordinator, until
from tests.command import Done, fedscale


async def node(*words: object) -> Done:
    """Run ``fedscale node`` while the coordinator goes on in this thread."""
    return await asyncio.to_thread(fedscale, "node", *words)


# ----------------------------------------------------------------------------------------------------------------- join


async def test_join_says_who_one_is_and_what_comes_next(coordinator: Coordinator, tmp_path: Path) -> None:
    done = await node("join", coordinator.ticket("mercy"), "--home", tmp_path / "node")
    assert (done.code, done.out) == (0, f"joined project p of {FEDERATION} as mercy\n")
    assert "fedscale node data add" in done.err
    assert "fedscale node start" in done.err
    assert NodeHome(tmp_path / "node").settings().name == "mercy"


async def test_join_as_data(coordinator: Coordinator, tmp_path: Path) -> None:
    data = (await node("join", coordinator.ticket(), "--name", "east", "--home", tmp_path / "node", "--json")).data
    assert data == {"name": "east", "federation": FEDERATION, "project": "p", "address": coordinator.address, "home": str(tmp_path / "node")}


async def test_a_ticket_may_come_by_stdin(coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{coordinator.ticket('mercy')}\n"))
    assert (await node("join", "-", "--home", tmp_path / "node")).code == 0


async def test_join_dry_run_spends_no_ticket(coordinator: Coordinator, tmp_path: Path) -> None:
    ticket = coordinator.ticket()
    done = await node("join", ticket, "--dry-run", "--home", tmp_path / "node")
    assert done.out == f"would join at 127.0.0.1:{coordinator.enrolment_port} and keep the key in {tmp_path / 'node'}\n"
    assert not (tmp_path / "node").exists()
    assert (await node("join", ticket, "--name", "a", "--home", tmp_path / "node")).code == 0


@pytest.mark.parametrize(
    ("ticket", "code", "what"), [("nonsense", 4, "this is not a ticket"), ("fs1.cut", 4, "the ticket is cut short or was altered")]
)
async def test_a_bad_ticket_is_told(ticket: str, code: int, what: str, tmp_path: Path) -> None:
    done = await node("join", ticket, "--home", tmp_path / "node")
    assert (done.code, done.err.splitlines()[0]) == (code, f"error: {what}")


async def test_a_used_ticket_and_a_second_joining(coordinator: Coordinator, tmp_path: Path) -> None:
    ticket = coordinator.ticket("mercy")
    assert (await node("join", ticket, "--home", tmp_path / "a")).code == 0
    assert (await node("join", ticket, "--home", tmp_path / "b", "--json")).error["type"] == "TicketError"
    assert (await node("join", ticket, "--home", tmp_path / "a", "--json")).error["exit_code"] == 6


async def test_nobody_at_the_address(coordinator: Coordinator, tmp_path: Path) -> None:
    ticket = coordinator.ticket()
    await coordinator.stop()
    done = await node("join", ticket, "--home", tmp_path / "node", "--timeout", "5")
    assert done.code == 3


# --------------------------------------------------------------------------------------------------------------- status


@pytest.mark.parametrize(
    "words", [["status"], ["start"], ["doctor"], ["data", "list"], ["data", "check", "x"], ["data", "add", "x", "--path", "x.csv"]]
)
async def test_before_joining_every_verb_names_the_next_step(words: list[str], tmp_path: Path) -> None:
    done = await node(*words, "--home", tmp_path / "none")
    assert done.code == 2
    assert "fedscale node join TICKET" in done.err


async def test_status(home: NodeHome, coordinator: Coordinator) -> None:
    data = (await node("status", "--home", home.path, "--json")).data
    assert data["valid_until"] == Credentials.of(home).expires().isoformat()
    assert {key: data[key] for key in ("name", "project", "running", "datasets")} == {
        "name": "mercy",
        "project": "p",
        "running": False,
        "datasets": ["heart"],
    }
    shown = {line.split()[0]: line.split()[-1] for line in (await node("status", "--home", home.path)).out.splitlines()}
    assert (shown["running"], shown["address"]) == ("no", coordinator.address)


async def test_status_sees_a_running_node(home: NodeHome) -> None:
    with home.locked():
        assert (await node("status", "--home", home.path, "--json")).data["running"] is True
    assert not home.is_held()


async def test_the_home_may_be_named_by_the_environment(home: NodeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSCALE_NODE_HOME", str(home.path))
    assert (await node("status", "--json")).data["name"] == "mercy"


async def test_a_relative_home_is_meant_from_here(home: NodeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.path.parent)
    assert opened(Path(home.path.name)).path == home.path


# ----------------------------------------------------------------------------------------------------------------- data


async def test_a_table_is_declared_listed_checked_and_withdrawn(home: NodeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "lung.csv")
    monkeypatch.chdir(tmp_path)
    done = await node("data", "add", "lung", "--path", "lung.csv", "--label", "y", "--columns", "b, a", "--home", home.path)
    assert (done.code, done.out) == (0, "this site offers lung\n")
    assert "fedscale node data check lung" in done.err
    declared = declarations.find(home, "lung")
    assert (declared.path, declared.columns, declared.label) == (str(tmp_path / "lung.csv"), ("b", "a"), "y")
    listed = (await node("data", "list", "--home", home.path, "--json")).data
    assert set(listed) == {"heart", "lung"}
    assert "lung.csv" in (await node("data", "list", "--home", home.path)).out
    checked = (await node("data", "check", "lung", "--home", home.path, "--json")).data
    assert checked == {"name": "lung", "problems": [], "rows": 40, "shape": [2]}
    assert (await node("data", "check", "lung", "--home", home.path)).out == "lung can be trained on (rows 40, shape [2])\n"
    assert (await node("data", "remove", "lung", "--home", home.path)).out == "withdrew lung\n"
    assert set(declarations.listed(home)) == {"heart"}


async def test_adding_and_removing_can_be_tried_first(home: NodeHome, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "lung.csv")
    data = (await node("data", "add", "lung", "--path", table, "--label", "y", "--home", home.path, "--dry-run", "--json")).data
    assert (data["rows"], data["shape"], data["dry_run"]) == (40, [2], True)
    assert (await node("data", "remove", "heart", "--home", home.path, "--dry-run")).out == "would withdraw heart\n"
    assert set(declarations.listed(home)) == {"heart"}


async def test_arrays_are_declared_by_their_labels(home: NodeHome, tmp_path: Path) -> None:
    np.savez(tmp_path / "scans.npz", x=np.zeros((12, 2, 2), np.float32), outcome=np.arange(12) % 2)
    words = ["data", "add", "scans", "--path", tmp_path / "scans.npz", "--label", "outcome", "--home", home.path]
    assert (await node(*words)).code == 0
    assert (await node("data", "check", "scans", "--home", home.path, "--json")).data["shape"] == [2, 2]


async def test_a_loader_in_a_file_is_found_from_any_folder(home: NodeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import numpy as np\ndef load():\n    return np.zeros((11, 3)), np.arange(11) % 2\n")
    monkeypatch.chdir(tmp_path)
    assert (await node("data", "add", "own", "--loader", "mine.py:load", "--home", home.path)).code == 0
    monkeypatch.chdir("/")
    assert (await node("data", "check", "own", "--home", home.path, "--json")).data["rows"] == 11
    assert declarations.find(home, "own").loader == f"{tmp_path}/mine.py:load"


async def test_what_is_not_a_dataset_is_shown_by_its_type(home: NodeHome, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def load():\n    return {'images': []}\n")
    await node("data", "add", "own", "--loader", f"{tmp_path}/mine.py:load", "--home", home.path)
    data = (await node("data", "check", "own", "--home", home.path, "--json")).data
    assert (data["type"], len(data["problems"])) == ("dict", 1)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "a dataset is a file or a loader"),
        (["--path", "a.csv", "--loader", "m:f"], 2, "a dataset is a file or a loader"),
        (["--path", "a.xlsx", "--label", "y"], 2, "'.xlsx' cannot be read"),
        (["--path", "a.csv"], 2, "needs the name of its label column"),
        (["--path", "a.csv", "--label", "y"], 2, "there is no such file"),
        (["--loader", "nonsense"], 2, "module:function"),
        (["--path", "a.csv", "--label", "y", "--missing", "guess"], 2, "'guess' is not one of"),
    ],
)
async def test_a_wrong_declaration_is_told(home: NodeHome, words: list[str], code: int, told: str) -> None:
    done = await node("data", "add", "x", *words, "--home", home.path)
    assert done.code == code
    assert told in done.err
    assert set(declarations.listed(home)) == {"heart"}


@pytest.mark.parametrize(
    ("words", "column"), [(["--label", "z"], "z"), (["--label", "y", "--columns", "a,q"], "q"), (["--label", "y", "--group", "g"], "g")]
)
async def test_a_column_that_is_not_there_is_told_when_it_is_declared(home: NodeHome, tmp_path: Path, words: list[str], column: str) -> None:
    done = await node("data", "add", "x", "--path", write_csv(tmp_path / "lung.csv"), *words, "--home", home.path)
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: there is no column '{column}'")
    assert set(declarations.listed(home)) == {"heart"}


async def test_names_that_clash_or_are_unknown(home: NodeHome, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "lung.csv")
    assert (await node("data", "add", "heart", "--path", table, "--label", "y", "--home", home.path)).code == 6
    for verb in ("check", "remove"):
        error = (await node("data", verb, "hart", "--home", home.path, "--json")).error
        assert (error["type"], error["hint"]) == ("NotFound", "did you mean 'heart'?")


async def test_a_problem_of_the_data_is_told_without_its_values(home: NodeHome, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,y\n" + "77,0\n" * 12)
    await node("data", "add", "bad", "--path", tmp_path / "bad.csv", "--label", "y", "--home", home.path)
    done = await node("data", "check", "bad", "--home", home.path)
    assert "bad: every label is the same" in done.out
    (tmp_path / "bad.csv").write_text("a,y\nsecret77,0\n")
    worse = await node("data", "check", "bad", "--home", home.path)
    assert worse.code == 2
    assert "secret77" not in worse.err


# --------------------------------------------------------------------------------------------------------------- doctor


async def test_the_doctor_of_a_sound_node(home: NodeHome, coordinator: Coordinator) -> None:
    done = await node("doctor", "--home", home.path, "--json")
    states = {check["name"].partition(str(home.path))[0].strip(): check["state"] for check in done.data["checks"]}
    assert any(states.pop(name) for name in list(states) if name.startswith("gpu"))
    posture = {"keys": "ok", "rules": "ok", "updates": "warning", "budget heart": "warning", "apps": "warning"}
    advice = {check["name"]: shlex.split(check["hint"])[1:] for check in done.data["checks"] if check["name"] in ("updates", "budget heart")}
    assert states == {"certificate": "ok", "coordinator": "ok", "dataset heart": "ok", "disk": "ok", "grpc": "ok", "torch": "ok"} | posture
    for words in (*advice.values(), ["node", "policy", "set", f'apps=["{"0" * 64}"]', "paused=true"]):
        assert (await node(*words[1:], "--home", home.path)).code == 0, "what the doctor prescribes works as it stands"
    home.key_file.chmod(0o640)
    home.policy_file.chmod(0o664)
    checks = {check["name"]: check for check in json.loads((await node("doctor", "--home", home.path, "--json")).out)["data"]["checks"]}
    found = {name: (checks[name]["state"], checks[name]["found"]) for name in ("keys", "rules", "updates", "budget heart", "apps", "paused")}
    assert found == {
        "keys": ("fault", "others on this machine can read them"),
        "rules": ("fault", "others on this machine can change what this site allows"),
        "updates": ("ok", "answers leave by secure aggregation only"),
        "budget heart": ("ok", "at most epsilon 4 for each record"),
        "apps": ("ok", "1 approved"),
        "paused": ("warning", "nothing begins and nothing leaves"),
    }
    assert (await asyncio.to_thread(subprocess.run, shlex.split(checks["keys"]["hint"]), check=False)).returncode == 0
    assert exposed(home) == {"keys": "", "rules": ""}
    home.path.chmod(0o770)
    assert exposed(home) == {"keys": "", "rules": "others on this machine can change what this site allows"}


async def test_the_doctor_finds_what_is_wrong(home: NodeHome, coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_doctor, "REACH_SECONDS", 0.3)
    await coordinator.stop()
    (tmp_path / "heart.csv").unlink()
    done = await node("doctor", "--home", home.path, "--json")
    checks = {check["name"]: check for check in json.loads(done.out)["data"]["checks"]}
    assert done.code == 2
    assert (checks["coordinator"]["state"], checks["dataset heart"]["state"]) == ("fault", "fault")
    declarations.remove(home, "heart")
    checks = {check["name"]: check for check in json.loads((await node("doctor", "--home", home.path, "--json")).out)["data"]["checks"]}
    assert "fedscale node data add" in checks["datasets"]["hint"]


@pytest.mark.parametrize(
    ("problem", "state", "found"),
    [
        (AccessDenied("'mercy' was revoked"), "fault", "does not accept this node: 'mercy' was revoked"),
        (Unreachable("another coordinator leads"), "fault", "another coordinator leads"),
        (ProtocolError("an answer is named by 64 hexadecimal digits"), "ok", "accepts this node"),
    ],
)
async def test_the_doctor_asks_what_the_coordinator_thinks_of_the_node(
    home: NodeHome, coordinator: Coordinator, problem: FedscaleError, state: str, found: str
) -> None:
    coordinator.refuse_bulk = problem
    checks = {check["name"]: check for check in json.loads((await node("doctor", "--home", home.path, "--json")).out)["data"]["checks"]}
    assert checks["coordinator"]["state"] == state
    assert found in checks["coordinator"]["found"]
    assert ("fedscale node join TICKET" in checks["coordinator"]["hint"]) == isinstance(problem, AccessDenied)


async def test_the_doctor_holds_the_ledger_against_what_the_coordinator_has_noted(home: NodeHome, coordinator: Coordinator) -> None:
    """A home that was restored from a backup has a sound ledger, which the node does not use."""
    Ledger.open(home)
    for noted, state in (("", "ok"), (f"7:{'ab' * 32}", "fault")):
        Chronicle(home, lambda: datetime.now(UTC)).take({"event": "connected", "noted": noted})
        checks = {check["name"]: check for check in json.loads((await node("doctor", "--home", home.path, "--json")).out)["data"]["checks"]}
        assert (checks["ledger"]["state"], "ends before entry 7" in checks["ledger"]["found"]) == (state, state == "fault")


async def test_the_doctor_of_a_home_that_somebody_else_owns_still_looks_at_everything(
    home: NodeHome, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != home.path)
    monkeypatch.setattr(os, "open", lambda path, *_, **__: pytest.fail(f"{path} was opened for writing"))
    done = await node("doctor", "--home", home.path, "--json")
    checks = {check["name"]: check for check in json.loads(done.out)["data"]["checks"]}
    assert checks["home"]["state"] == "fault"
    assert (checks["dataset heart"]["state"], checks["coordinator"]["state"], done.code) == ("ok", "ok", 2)


async def test_commands_that_are_proposed_can_be_typed_whatever_the_home_is_called(coordinator: Coordinator, tmp_path: Path) -> None:
    home = tmp_path / "Haus; rm -rf 'ö'"
    joined = await node("join", coordinator.ticket("mercy"), "--home", home)
    first, second = re.findall(r"(fedscale node .*? --home .*?)(?:; then: |$)", joined.err.strip())
    csv = write_csv(tmp_path / "heart.csv")
    assert (await node("data", "add", "heart", "--path", csv, "--label", "y", "--home", home)).err.strip().endswith(shlex.quote(str(home)))
    assert shlex.split(first)[-1] == shlex.split(second)[-1] == str(home)
    assert [shlex.split(words)[2] for words in (first, second)] == ["data", "start"]


# ---------------------------------------------------------------------------------------------------------------- start


async def start(home: NodeHome, *words: str) -> asyncio.subprocess.Process:
    """The real process."""
    environment = os.environ | {"FEDSCALE_NODE_HOME": str(home.path)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "fedscale", "node", "start", *words, stdout=pipe, stderr=pipe, env=environment)


async def test_a_started_node_connects_logs_and_stops_when_told(home: NodeHome, coordinator: Coordinator) -> None:
    process = await start(home, "--log", "json")
    session = await coordinator.connected()
    assert (session.node, list(session.hello.datasets)) == ("mercy", ["heart"])
    assert (await node("status", "--home", home.path, "--json")).data["running"] is True
    second = await start(home)
    _, err = await second.communicate()
    assert (second.returncode, b"running in this home already" in err) == (6, True)
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, b"")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines] == ["connected", "stopped"]
    assert lines[0]["level"] == "info"


async def test_a_node_that_is_shut_out_ends_with_4(home: NodeHome, coordinator: Coordinator) -> None:
    coordinator.refuse = AccessDenied("this site is revoked", hint="ask the coordinator")
    process = await start(home)
    out, err = await process.communicate()
    assert (process.returncode, out) == (4, b"")
    assert b"error: the server does not accept" in err
    assert b"this site is revoked" in err


def test_failures_are_logged_flat_and_progress_not_at_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    configure("text")
    cli_start._log({"event": "progress", "fraction": 0.5})
    cli_start._log({"event": "failed", "key": "r/train/1", "failure": {"cause": "data", "what": "no column", "hint": ""}})
    told = capsys.readouterr().err
    assert "progress" not in told
    assert "[warning" in told
    assert "cause=data" in told
    assert "hint" not in told


async def test_the_log_reaches_a_started_node_by_words_too(home: NodeHome, coordinator: Coordinator) -> None:
    process = await start(home)
    await coordinator.connected()
    assert process.stderr is not None
    first = (await process.stderr.readline()).decode()
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 0
    assert "connected" in first
    assert "node=mercy" in first
    await until(lambda: not coordinator.session.open)
