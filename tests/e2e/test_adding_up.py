"""Nodes that are killed, hang, raise or have bad data: the others go on, and the coordinator knows why."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedscale.errors import Cause
from fedscale.record import RunRecord
from tests.e2e import trial
from tests.e2e.conftest import declared, write_table
from tests.e2e.federation import Event, Federation, until

PATIENT = "zephyrine-quill-1951"
DEADLINE = 30.0
WELL, KILLED, HANGING, RAISING, SPOILT = ("ann", "bob"), "kim", "leo", "mia", "ned"
CAUSES = {KILLED: Cause.LOST, HANGING: Cause.TIMEOUT, RAISING: Cause.CODE, SPOILT: Cause.DATA}
HOW = {KILLED: trial.SLEEP, HANGING: trial.SLEEP, RAISING: trial.RAISE}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Two sites that are well, and one of each kind that is not."""
    folder = tmp_path_factory.mktemp("adding-up")
    with Federation(folder) as made:
        tables = {name: write_table(folder / f"{name}.csv", name, HOW.get(name, trial.WELL), PATIENT) for name in (*WELL, *CAUSES)}
        made.join_all(tables, lambda name: declared(tables[name]))
        lines = tables[SPOILT].read_text().splitlines()
        tables[SPOILT].write_text("\n".join([*lines[:7], f"0,{PATIENT},1.5,2,1,{PATIENT}", *lines[8:]]))
        yield made


@pytest.fixture
def restored(federation: Federation) -> Iterator[Federation]:
    """The same with all nodes at work again afterwards."""
    yield federation
    if not federation.nodes[KILLED].alive:
        federation.start_node(KILLED)


def clients(least: int) -> dict[str, object]:
    return {"wait_for": 6, "min_per_round": least, "deadline": DEADLINE, "rejoin": 5.0}


def kill(federation: Federation, run: str) -> float:
    """Kill the node that is at work in round 2; returns when."""
    federation.at_work(KILLED, run, 2)
    federation.nodes[KILLED].kill()
    return time.time()


def failures(record: RunRecord, phase: str, number: int) -> dict[str, Cause]:
    row = next(row for row in record.rounds if (row.phase, row.number) == (phase, number))
    return {node: failure.cause for node, failure in row.failures.items()}


def everything(folder: Path) -> bytes:
    """The content of all files below a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_run_finishes_with_those_that_remain_and_names_each_cause(restored: Federation, job: Callable[..., Path], tmp_path: Path) -> None:
    federation = restored
    run = federation.submit(job(rounds=3, clients=clients(least=2)))
    events, screen = federation.watch(run), federation.begin("screen", "run", "watch", run, "--profile", federation.profile)
    killed = kill(federation, run)
    opened = events.event("opened", phase="train", number=2)["at"]

    named: dict[str, Event] = {
        KILLED: events.event("lost", node=KILLED, number=2),
        RAISING: events.event("failed", node=RAISING, number=2),
        SPOILT: events.event("failed", node=SPOILT, number=2),
    }
    happened = {KILLED: killed, RAISING: opened, SPOILT: opened}
    assert {node: named[node]["detail"]["cause"] for node in (RAISING, SPOILT)} == {RAISING: "code", SPOILT: "data"}
    closed = events.event("closed", phase="train", number=2)
    lasted = closed["at"] - opened
    assert lasted > 0.9 * DEADLINE, "the one that hangs is waited for"
    assert {node: event["at"] - happened[node] < lasted / 2 for node, event in named.items()} == dict.fromkeys(named, True), "the others are not"

    assert events.wait().code == 0
    record = federation.record(run)
    assert (record.status, record.reason) == ("completed", "")
    assert failures(record, "train", 2) == CAUSES
    assert failures(record, "train", 3) == {SPOILT: Cause.DATA}
    answered = {(row.phase, row.number): set(row.answered) for row in record.rounds}
    assert answered["train", 2] == set(WELL)
    assert answered["train", 3] == {*WELL, HANGING, RAISING}

    # What a site knows of its patients stays there, whatever its code did with it.
    shown = screen.wait()
    for node in CAUSES:
        assert node in shown.err
    report = federation.manage("run", "report", run, "--out", tmp_path / "report")
    told = [everything(federation.home), everything(tmp_path / "report"), federation.server.told().encode(), (shown.out + shown.err).encode()]
    assert [PATIENT.encode() in text for text in (*told, events.said().encode())] == [False] * 5
    assert "trial.py" in Path(report["report.html"]).read_text()
    assert PATIENT in (federation.node_home(RAISING) / "log" / "worker.log").read_text()


def test_below_quorum_the_run_stops_and_says_why(restored: Federation, job: Callable[..., Path]) -> None:
    federation = restored
    submit = ("run", "submit", job(rounds=3, clients=clients(least=3)), "--project", "trial", "--watch", "--json", "--profile", federation.profile)
    following = federation.begin("submit", *submit)
    until(lambda: "submitted" in following.told() and following.told().endswith("\n"), "the run's id")
    kill(federation, following.told().split()[1])
    done = following.wait()
    assert done.code == 1
    assert done.error["type"] == "RunFailed"
    assert "round 2 (train): 2 of 6 nodes answered, 3 are needed" in done.error["why"]
    for node, cause in CAUSES.items():
        assert f"{node}: {cause}: " in done.error["why"]
    assert PATIENT not in done.out + done.err


def test_a_frozen_node_is_named_and_comes_back(restored: Federation, job: Callable[..., Path]) -> None:
    federation, frozen = restored, WELL[0]
    run = federation.submit(job(rounds=1, epochs=80, clients=clients(least=4) | {"rejoin": 60.0, "deadline": 60.0}))
    events = federation.watch(run)
    federation.at_work(frozen, run, 1)
    federation.nodes[frozen].send(signal.SIGSTOP)
    events.event("lost", node=frozen)
    federation.nodes[frozen].send(signal.SIGCONT)
    events.event("returned", node=frozen)
    assert events.wait().code == 0
    assert frozen in federation.record(run).rounds[0].answered
