"""A Flower app's own ServerApp leads a deployed run: real processes, whoever is killed on the way, the result of a simulation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedscale.record import RunRecord
from fedscale_simulations.flower import simulate_app
from tests.e2e.federation import PROJECT, Federation, Process, until
from tests.e2e.partners import NAMES, partners
from tests.flower import samples

pytestmark = [pytest.mark.requires("flower"), pytest.mark.timeout(600)]

PATIENCE = 250.0
TOGETHER = ("clients.wait_for=2", "clients.rejoin=60s")
SLOW = samples.MESSAGES.replace("        rounds = context", "        __import__('time').sleep(0.3)\n        rounds = context")

SLOW_NUMPY = samples.NUMPY.replace("state = self.context", "__import__('time').sleep(0.3)\n            state = self.context")

# Central evaluation beside the clients' own.
CENTRAL = samples.STRATEGY.replace("num_rounds=", "evaluate_fn=central, num_rounds=").replace(
    "    app = ServerApp()",
    """    from flwr.app import MetricRecord

    app = ServerApp()


    def central(number, arrays):
        return MetricRecord({"level": float(arrays.to_numpy_ndarrays()[0].mean())})""",
)

# An action of an app's own, which may fail, and whose model is bytes, as that of trees.
OWN_CLIENT = (
    SLOW
    + """

    @app.train("grow")
    def grow(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == message.content["config"]["breaks"]:
            raise ValueError("this one has no trees")
        from flwr.app import Array
        before = message.content["model"]["0"].data
        tree = bytes([context.node_config["partition-id"] + 1]) * 5
        grown = Array(dtype="", shape=(), stype="", data=before + tree)
        return Message(RecordDict({"model": ArrayRecord({"0": grown}), "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""
)
OWN_SERVER = samples.OWN_LOOP.replace(
    '        np.save("model.npy", model)',
    """        from flwr.app import Array

        forest = b""
        for number in range(3):
            trees = ArrayRecord({"0": Array(dtype="", shape=(), stype="", data=forest)})
            content = RecordDict({"model": trees, "config": ConfigRecord({"breaks": number, "raw": b"xy", "list": [1.5, 2.5]})})
            replies = grid.send_and_receive([Message(content, node, "train.grow") for node in nodes])
            forest += b"".join(reply.content["model"]["0"].data[len(forest):] for reply in replies if not reply.has_error())
        np.savez(context.run_config["site.name"], model=model, forest=np.frombuffer(forest, np.uint8))""",
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with partners(tmp_path_factory.mktemp("lead")) as made:
        yield made


def held(client: str, number: str, last: int, hold: Path) -> str:
    """A ClientApp that begins with no round after one as long as a file is there: however slow the machine is, the run is not over then."""
    wait = f"while {number} > {last} and __import__('os').path.exists({str(hold)!r}): __import__('time').sleep(0.05)"
    return re.sub(r"( +)__import__\('time'\)\.sleep\(0\.3\)\n", lambda found: f"{found[0]}{found[1]}{wait}\n", client)


def lead(federation: Federation, app: Path, out: Path, *settings: str, run: str = "") -> Process:
    """A leader at work; its results go to a folder."""
    words = [word for setting in (*TOGETHER, *settings) for word in ("--set", setting)]
    going = ("--run", run) if run else ("--project", PROJECT)
    return federation.begin("lead", "run", "lead", app, *going, *words, "--out", out, "--json", "--profile", federation.profile)


def begun(federation: Federation, leader: Process) -> str:
    """The id of the run that a leader has begun."""
    until(lambda: "leading run " in leader.told() or not leader.alive, "the leader")
    assert leader.alive, leader.told()
    return leader.told().partition("leading run ")[2].split(";")[0]


def ended(leader: Process) -> RunRecord:
    """The record of a run that its leader has brought to a good end."""
    done = leader.wait(PATIENCE)
    assert done.code == 0, done.err
    return RunRecord.from_json(json.dumps(done.data["record"]))


def answered(federation: Federation, run: str, phase: str, number: int) -> None:
    """Wait until a site has answered in a round."""
    federation.watch(run).event("answered", phase=phase, number=number)


def remembered(federation: Federation) -> list[Path]:
    """Files in which sites keep what ClientApps remember."""
    return [path for name in NAMES for path in federation.node_home(name).glob("**/states/*/*")]


def test_strategy_and_central_evaluation_survive_everybody(federation: Federation, tmp_path: Path) -> None:
    """Node, coordinator and leader killed in the middle, one after the other: model and metrics of the simulation."""
    hold = tmp_path / "hold"
    app = samples.write(tmp_path / "app", held(SLOW, "config['server-round']", 3, hold), CENTRAL)
    theirs = simulate_app(app, 2, ["num-server-rounds=5"])
    hold.touch()
    leader = lead(federation, app, tmp_path / "out", "num-server-rounds=5")
    run = begun(federation, leader)
    answered(federation, run, "train", 1)
    federation.nodes["bob"].kill()
    federation.start_node("bob")
    answered(federation, run, "train", 2)
    federation.server.kill()
    federation.start_server()
    answered(federation, run, "train", 3)
    assert remembered(federation)
    leader.kill()
    hold.unlink()
    record = ended(lead(federation, app, tmp_path / "out", "num-server-rounds=5", run=run))
    assert (record.status, record.reason) == ("completed", "")
    assert {row.answered for row in record.rounds} == {NAMES}
    for row, other in zip(record.rounds, theirs.record.rounds, strict=True):
        assert (row.number, row.phase) == (other.number, other.phase)
        assert row.metrics == pytest.approx(other.metrics, abs=1e-6)
    until(lambda: not remembered(federation), "the sites to forget the run")
    model = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in theirs.arrays.items():
        assert model[name] == pytest.approx(np.asarray(array), abs=1e-6)


def test_a_loop_of_its_own_with_queries_and_actions(federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, push and pull, an action of its own, models of bytes; a client that raises is an error reply, and a failure of the record."""
    hold = tmp_path / "hold"
    app = samples.write(tmp_path / "app", held(OWN_CLIENT, "config['server-round']", 2, hold), OWN_SERVER)
    monkeypatch.chdir(tmp_path)
    simulate_app(app, 2, ["site.name=theirs"])
    hold.touch()
    leader = lead(federation, app, tmp_path / "out", f"site.name={tmp_path / 'ours'}")
    run = begun(federation, leader)
    answered(federation, run, "train", 2)
    leader.kill()
    hold.unlink()
    record = ended(lead(federation, app, tmp_path / "out", f"site.name={tmp_path / 'ours'}", run=run))
    ours, theirs = np.load(tmp_path / "ours.npz"), np.load(tmp_path / "theirs.npz")
    assert ours["model"] == pytest.approx(theirs["model"], abs=1e-6)
    assert ours["forest"].tobytes() == theirs["forest"].tobytes() != b""
    failures = [(node, failure.cause, failure.what) for row in record.rounds for node, failure in row.failures.items()]
    assert [(node, str(cause)) for node, cause, _ in failures] == [("ann", "code"), ("bob", "code")]
    assert not any("no trees" in what for _, _, what in failures), "what foreign code says may hold values"


def test_a_legacy_server_with_numpy_clients(federation: Federation, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    app = samples.write(tmp_path / "app", held(SLOW_NUMPY, "config['given']", 2, hold), samples.LEGACY)
    theirs = simulate_app(app, 2)
    hold.touch()
    leader = lead(federation, app, tmp_path / "out")
    run = begun(federation, leader)
    answered(federation, run, "train", 1)
    leader.kill()
    hold.unlink()
    ended(lead(federation, app, tmp_path / "out", run=run))
    model = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in theirs.arrays.items():
        assert model[name] == pytest.approx(np.asarray(array), abs=1e-6)
