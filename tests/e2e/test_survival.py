"""Processes that die, come back or are only looked at: a run goes on by itself and comes to the same model."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import declared
from tests.e2e.federation import Federation, until
from tests.e2e.sockets import Socket, family, sockets

SITES = ("ann", "bob", "cid")
ALL = {"wait_for": 3, "min_per_round": 3, "deadline": 60.0, "rejoin": 60.0}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Path]) -> Iterator[Federation]:
    with Federation(tmp_path_factory.mktemp("survival")) as made:
        made.join_all(tables, lambda name: declared(tables[name]))
        yield made


def crash(federation: Federation) -> None:
    """Kill the coordinator, and start it again."""
    federation.server.kill()
    federation.start_server()


def test_a_killed_server_goes_on_when_it_is_started_again(federation: Federation, job: Callable[..., Path], expected: Callable[[Path], str]) -> None:
    file = job(rounds=5, epochs=4, clients=ALL, strategy={"name": "fedadam", "rounds": 5, "lr": 0.5})
    run = federation.submit(file)
    events = federation.watch(run)
    # In the middle of a round with some of its answers in, then right behind a checkpoint, then while everybody is at work.
    events.event("answered", phase="train", number=2)
    crash(federation)
    events.event("closed", phase="train", number=3)
    crash(federation)
    events.event("opened", phase="train", number=4)
    crash(federation)

    assert events.wait().code == 0
    record = federation.record(run)
    assert (record.status, record.reason, len(record.rounds)) == ("completed", "", 6)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)
    sequence = [event["sequence"] for event in events.events() if event["sequence"]]
    assert sequence == list(range(1, len(sequence) + 1)), "a watcher that outlives the coordinator misses nothing and hears nothing twice"


def held(file: Path, hold: Path) -> Path:
    """A job whose sites are at work in round 2 for as long as a file is there: whoever is to die in it is in time, however slow the machine is."""
    app, sleep = file.parent / "trial.py", "        time.sleep(EPOCH_SECONDS"
    text = app.read_text()
    assert text.count(sleep) == 1
    wait = f"        while work.number == 2 and __import__('os').path.exists({str(hold)!r}):\n            time.sleep(0.01)\n"
    app.write_text(text.replace(sleep, wait + sleep))
    return file


def test_a_killed_node_rejoins_its_round(federation: Federation, job: Callable[..., Path], expected: Callable[[Path], str], tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    file = held(job(rounds=2, clients=ALL), hold)
    run = federation.submit(file)
    events = federation.watch(run)
    federation.at_work("bob", run, 2)
    federation.nodes["bob"].kill()
    events.event("lost", node="bob")
    federation.start_node("bob")
    events.event("returned", node="bob")
    hold.unlink()

    assert events.wait().code == 0
    record = federation.record(run)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)


def test_looking_away_leaves_the_run_alone(federation: Federation, job: Callable[..., Path]) -> None:
    run = federation.submit(job(rounds=500, epochs=4, clients=ALL))
    watching = federation.begin("screen", "run", "watch", run, "--profile", federation.profile)
    until(lambda: "train 1/500" in watching.told(), "a first line")
    watching.send(signal.SIGINT)
    left = watching.wait()
    assert left.code == 130
    assert f"fedscale run watch {run}" in left.err
    assert federation.status(run) == "running"

    federation.manage("run", "stop", run, "--reason", "seen enough")
    ended = federation.fedscale("run", "watch", run, "--json", "--profile", federation.profile)
    assert (ended.code, ended.error["type"], ended.error["why"]) == (1, "RunFailed", "seen enough")


def test_nothing_listens_or_calls_beyond_this_machine(federation: Federation, job: Callable[..., Path]) -> None:
    run = federation.submit(job(rounds=3, epochs=2, clients=ALL))
    events = federation.watch(run)
    seen: dict[int, set[Socket]] = {}

    def over() -> bool:
        for process in (federation.server, events, *federation.nodes.values()):
            for pid in family(process.pid):
                seen.setdefault(pid, set()).update(sockets(pid))
        return not events.alive

    until(over, "the end of the run")
    everything = set().union(*seen.values())
    assert {socket for socket in everything if not socket.is_local} == set()
    assert {socket.local[1] for socket in seen[federation.server.pid] if socket.listens} == {int(port) for port in federation.ports}
    for node in federation.nodes.values():
        assert not any(socket.listens for pid in family(node.pid) for socket in seen[pid])
        assert [seen.get(worker) for worker in family(node.pid) if worker != node.pid and seen.get(worker)] == [], (
            "a worker has a connection of its own"
        )
        assert any(socket.remote[1] == int(federation.ports[0]) for socket in seen[node.pid])


def test_a_stopped_federation_leaves_nothing_behind(tables: dict[str, Path], tmp_path: Path, job: Callable[..., Path]) -> None:
    with Federation(tmp_path / "short") as short:
        short.join("ann", declared(tables["ann"]))
        run = short.submit(job(rounds=50, epochs=4, clients={"deadline": 60.0}))
        short.at_work("ann", run, 2)
        pids = [pid for process in (short.server, *short.nodes.values()) for pid in family(process.pid)]
        assert len(pids) >= 3
    until(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids), "the end of every process")
    assert [process.wait().code for process in (short.server, short.nodes["ann"])] == [0, 0]
