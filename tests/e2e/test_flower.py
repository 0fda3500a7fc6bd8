"""A Flower app deployed as it is: real processes, a node and the coordinator killed on the way, the result of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedscale.record import RunRecord
from fedscale_simulations.flower import simulate_app
from tests.e2e.federation import PROJECT, Federation
from tests.e2e.partners import NAMES, partners
from tests.flower import samples

pytestmark = [pytest.mark.requires("flower"), pytest.mark.timeout(600)]

PATIENCE = 250.0
ROUNDS, LR = 4, 0.5
TOGETHER = ("clients.wait_for=2", "clients.min_per_round=2", "clients.rejoin=60s", "evaluate.min_cell=1", 'evaluate.metrics=["score"]')


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with partners(tmp_path_factory.mktemp("flower")) as made:
        yield made


def expected(rounds: int) -> float:
    """Weighted with 1 and 2 examples, the places 0 and 1 pull the model towards 2/3."""
    return (1 - (1 - LR) ** rounds) * 2 / 3


def result(federation: Federation, run: str, out: Path) -> tuple[RunRecord, Mapping[str, Any]]:
    """Record and model of a run that has completed, in which everybody always answered."""
    record = federation.record(run)
    assert (record.status, record.reason) == ("completed", "")
    assert {row.answered for row in record.rounds} == {NAMES}
    federation.manage("run", "export", run, "--out", out)
    return record, load_file(out)


def test_an_app_survives_its_node_and_its_coordinator(federation: Federation, tmp_path: Path) -> None:
    slow = samples.MESSAGES.replace("        rounds = context", "        __import__('time').sleep(0.3)\n        rounds = context")
    run = federation.submit(samples.write(tmp_path / "app", slow), *TOGETHER, f"num-server-rounds={ROUNDS}")
    events = federation.watch(run)
    events.event("opened", phase="train", number=2)
    federation.nodes["bob"].kill()
    federation.start_node("bob")
    events.event("opened", phase="train", number=3)
    federation.server.kill()
    federation.start_server()
    assert events.wait(PATIENCE).code == 0, events.said()
    record, model = result(federation, run, tmp_path / "model.safetensors")
    assert len(record.rounds) == 2 * ROUNDS
    assert record.rounds[-1].metrics["score"] == pytest.approx(expected(ROUNDS), rel=1e-5)
    assert model["0"] == pytest.approx(np.full((2, 3), expected(ROUNDS)), rel=1e-5)


def test_flowers_strategy_survives_the_coordinator(federation: Federation, tmp_path: Path) -> None:
    """What FedAvgM remembers is in the checkpoint: killed after every round, the coordinator comes to what Flower's own loop comes to."""
    slow = samples.MESSAGES.replace("        rounds = context", "        __import__('time').sleep(0.3)\n        rounds = context")
    momentum = {"server_momentum": 0.5, "server_learning_rate": 0.7}
    server = samples.STRATEGY.replace("min_available_nodes=2", f"min_available_nodes=2, **{momentum}")
    folder = samples.write(tmp_path / "app", slow, server)
    theirs = simulate_app(folder, 2, [f"num-server-rounds={ROUNDS}", "strategy=FedAvgM"])
    given = [f"strategy.arguments.{key}={value}" for key, value in momentum.items()]
    told = ["strategy.name=flower", "strategy.of=FedAvgM", f"strategy.rounds={ROUNDS}", "aggregate.weight_cap=2"]
    run = federation.submit(folder, *TOGETHER, "strategy=FedAvgM", *told, *given)
    for number in (2, ROUNDS):
        federation.watch(run).event("opened", phase="train", number=number)
        federation.server.kill()
        federation.start_server()
    events = federation.watch(run)
    assert events.wait(PATIENCE).code == 0, events.said()
    _, model = result(federation, run, tmp_path / "model.safetensors")
    assert model["0"] == pytest.approx(np.asarray(theirs.arrays["0"]), rel=1e-4)


def test_a_strategy_that_there_is_not_is_refused_at_once(federation: Federation, tmp_path: Path) -> None:
    folder = samples.write(tmp_path / "app")
    asked = ("--set", "strategy.name=flower", "--set", "strategy.of=FedNothing", "--project", PROJECT)
    refused = federation.fedscale("run", "submit", folder, *asked, "--profile", federation.profile, "--json")
    assert refused.code == 2
    assert refused.error["what"] == "Flower has no strategy 'FedNothing'"


def test_a_numpy_client_of_a_legacy_app(federation: Federation, tmp_path: Path) -> None:
    run = federation.submit(samples.write(tmp_path / "app", samples.NUMPY, samples.LEGACY), *TOGETHER, "num-server-rounds=2", "lr=0.5")
    assert federation.watch(run).wait(PATIENCE).code == 0
    record, model = result(federation, run, tmp_path / "model.safetensors")
    assert record.rounds[-1].metrics["score"] == pytest.approx(expected(2), rel=1e-5)
    assert model["1"] == pytest.approx(np.full(4, 0.25 + expected(2)), rel=1e-5)


def test_a_forecast_names_what_would_be_sent(federation: Federation, tmp_path: Path) -> None:
    folder = samples.write(tmp_path / "app")
    told = federation.manage("run", "submit", folder, "--project", PROJECT, "--dry-run")
    assert (told["job"], told["rounds"], sorted(told["nodes"])) == ("sample-app", 3, list(NAMES))
    assert set(told["files"]) == {"fedscale_flower.py", "pyproject.toml", "sample/__init__.py", "sample/client_app.py", "sample/server_app.py"}
