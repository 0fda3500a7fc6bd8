"""The same apps here and in flwr's own simulation, whose Ray is replaced by a worker in this process: the results are equal."""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.metadata
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from fedscale.flower import apps, directory, witness
from fedscale_simulations.flower import FlowerSimulation, simulate_app
from fedscale_simulations.job import importable
from tests.flower import contest, others, samples, test_templates

pytestmark = pytest.mark.requires("flower")
# What is inside of flwr's engine changes from release to release; the newest supported one is the reference.
REFERENCE = (1, 41)

BACKEND = "flwr.server.superlink.fleet.vce.backend.raybackend"


class Inline:
    """A backend of flwr's simulation without Ray."""

    num_workers = 1

    def __init__(self, _config: Any) -> None:
        self._load: Callable[[], Any] = lambda: None

    def build(self, load: Callable[[], Any]) -> None:
        self._load = load

    def process_message(self, message: Any, context: Any) -> tuple[Any, Any]:
        # Ray takes copies along.
        message, context = copy.deepcopy(message), copy.deepcopy(context)
        return self._load()(message, context), context

    def terminate(self) -> None:
        self._load = lambda: None


def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> witness.Outcome:
    """What flwr's own engine comes to: its link state, its node store, its grid."""
    if tuple(map(int, importlib.metadata.version("flwr").split(".")[:2])) < REFERENCE:
        pytest.skip("its engine is driven from flwr 1.41 on")
    module = types.ModuleType(BACKEND)
    module.RayBackend = Inline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, BACKEND, module)
    # It looks whether Ray is there before it asks its backend, which needs none here.
    ray = types.ModuleType("ray")
    ray.__spec__ = importlib.machinery.ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    read, outcome = directory.read(folder), witness.Outcome()
    engine: Any = pytest.importorskip("flwr.simulation.run_simulation")
    monkeypatch.setattr(engine, "event", lambda *_, **__: None)
    # The nodes take the run config of an installed app; this one is only a directory.
    monkeypatch.setattr(pytest.importorskip("flwr.compat.client.run_info_store"), "get_fused_config", lambda run: dict(read.config))
    message: Any = pytest.importorskip("flwr.app")
    context = message.Context(run_id=1, node_id=0, node_config={}, state=message.RecordDict(), run_config=dict(read.config))
    with importable(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {"server_app": apps.server_app(read), "client_app": apps.client_app(read)}
        with witness.witnessed(outcome):
            engine._run_simulation(num_supernodes=read.nodes, exit_event=None, server_app_context=context, **parts)
    return outcome


def differences(ours: FlowerSimulation, reference: witness.Outcome) -> list[object]:
    """Arrays and metrics that are not the same but for the order in which numbers were added up, after the first model's evaluation."""
    assert ours.arrays.keys() == reference.arrays.keys() > set()
    found: list[object] = []
    for name, array in reference.arrays.items():
        expected = pytest.approx(np.asarray(array), rel=max(1e-6, 8 * float(np.finfo(array.dtype).eps)))
        found += [] if ours.arrays[name].dtype == array.dtype and np.asarray(ours.arrays[name]) == expected else [name]
    rounds: dict[tuple[str, int], dict[str, float]] = {(row.phase, row.number): row.metrics for row in ours.record.rounds}
    for key, values in reference.metrics.items():
        told = {name: value for name, value in rounds.get(key, {}).items() if name in values}
        found += [] if key[1] == 0 or told == pytest.approx(values, rel=1e-6) else [(key, told, values)]
    return found


# Flower starts its ServerApp while its nodes still arrive, so the apps wait for all of them.
PATIENT = samples.STRATEGY.replace("min_available_nodes=2", "min_available_nodes=5, min_train_nodes=5, min_evaluate_nodes=5")
WAITING = samples.LEGACY.replace("kind(", "kind(min_available_clients=5, min_fit_clients=5, min_evaluate_clients=5, ")


PAIRS = {
    "messages": (samples.MESSAGES, PATIENT),
    "legacy": (samples.NUMPY, WAITING),
    "a start of its own": (others.BEST_CLIENT, others.BEST_SERVER),
    "clients by number": (others.SERDE_CLIENT, others.SERDE_SERVER),
    "a workflow": (samples.NUMPY, others.WORKFLOW),
}


@pytest.mark.parametrize("parts", PAIRS.values(), ids=PAIRS)
def test_an_app_comes_to_what_flwr_comes_to(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str]) -> None:
    folder = app(*parts)
    ours, reference = simulate_app(folder), theirs(folder, monkeypatch)
    assert (ours.record.status, ours.record.reason) == ("completed", "")
    assert differences(ours, reference) == []


@pytest.mark.parametrize("api", contest.PLAYS)
def test_every_strategy_comes_to_what_flwr_comes_to(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, api: str) -> None:
    """The noise of those that draw any is seeded by the app, as it would be with Flower."""
    monkeypatch.chdir(tmp_path)
    client, server, names = contest.PLAYS[api]
    folder, final = app(client, server), []
    for run in (lambda: simulate_app(folder), lambda: theirs(folder, monkeypatch)):
        run()
        final.append(dict(np.load("final.npz")))
        (tmp_path / "final.npz").unlink()
    assert final[0].keys() == final[1].keys() == names
    assert [name for name in names if final[0][name] != pytest.approx(final[1][name], rel=1e-6, abs=1e-7)] == []


def test_the_pytorch_quickstart_comes_to_what_flwr_comes_to(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Integer buffers, a config for training and an evaluation at the server among it."""
    monkeypatch.chdir(tmp_path)
    folder = app(test_templates.TORCH_CLIENT, test_templates.TORCH_SERVER)
    (folder / "sample" / "task.py").write_text(dedent(test_templates.TORCH_TASK))
    ours, reference = simulate_app(folder), theirs(folder, monkeypatch)
    assert ours.arrays.keys() == reference.arrays.keys() > {"norm.num_batches_tracked"}
    for name, array in reference.arrays.items():
        assert np.asarray(ours.arrays[name]) == pytest.approx(np.asarray(array), rel=1e-5, abs=1e-6)


EVERY = "min_available_nodes=5"
LEGACY = "min_available_clients=5, min_fit_clients=5, min_evaluate_clients=5, evaluate_metrics_aggregation_fn=pooled"


@pytest.mark.requires("xgboost")
@pytest.mark.parametrize(
    ("parts", "chosen", "kinds", "cyclic"),
    [
        # Trees are added in the order of the replies, which with Flower is anybody's; so are the clients asked in turn. The margin that a
        # forest begins with is the first reply's, unless the params say.
        (others.TREES, f"FedXgbBagging({EVERY}, min_train_nodes=5, min_evaluate_nodes=5)", 5, False),
        (others.TREES, f"FedXgbCyclic({EVERY})", 1, True),
        (others.LEGACY_TREES, f"FedXgbBagging({LEGACY})", 5, False),
        (others.LEGACY_TREES, f"FedXgbCyclic({LEGACY})", 1, True),
    ],
    ids=["bagging", "cyclic", "legacy bagging", "legacy cyclic"],
)
def test_trees_come_to_what_flwr_comes_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: tuple[str, str], chosen: str, kinds: int, *, cyclic: bool
) -> None:
    xgboost: Any = pytest.importorskip("xgboost")
    monkeypatch.chdir(tmp_path)
    folder = others.xgboost(tmp_path / "trees", parts, chosen, kinds, cyclic=cyclic)
    ours, reference = simulate_app(folder), theirs(folder, monkeypatch)
    assert (ours.record.status, ours.record.reason) == ("completed", "")
    x, margins = xgboost.DMatrix(np.random.default_rng(9).normal(size=(50, 5)), nthread=1), []
    for arrays in (ours.arrays, reference.arrays):
        made = xgboost.Booster({"nthread": 1})
        made.load_model(bytearray(arrays["0"].tobytes()))
        margins.append(made.predict(x, output_margin=True))
    assert margins[0] == pytest.approx(margins[1], rel=1e-5, abs=1e-6)
    last = [row.metrics for row in ours.record.rounds if row.phase == "evaluate"][-1]
    assert last == pytest.approx(reference.metrics["evaluate", 3], rel=1e-6)
    assert last["trees"] == (3 if cyclic else 5 * 3)
    assert last["auc"] > 0.7


def test_a_split_model_comes_to_what_flwr_comes_to(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ServerApp and clients each in an event loop of their own; what a client does to the message that it got, the ServerApp does not see."""
    monkeypatch.chdir(tmp_path)
    folder, losses = app(others.SPLIT_CLIENT, others.SPLIT_SERVER), []
    for run in (lambda: simulate_app(folder), lambda: theirs(folder, monkeypatch)):
        run()
        losses.append(json.loads((tmp_path / "losses.json").read_text()))
        (tmp_path / "losses.json").unlink()
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]
