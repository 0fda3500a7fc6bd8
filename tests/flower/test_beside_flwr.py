"""The same apps here and in flwr's own simulation, whose Ray is replaced by a worker in this process: the results are equal."""

from __future__ import annotations

import importlib.metadata
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
from fedscale_simulations.flower import simulate_app
from fedscale_simulations.job import importable
from tests.flower import samples, test_templates

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
    read, outcome = directory.read(folder), witness.Outcome()
    engine: Any = pytest.importorskip("flwr.simulation.run_simulation")
    monkeypatch.setattr(engine, "event", lambda *_, **__: None)
    # The nodes take the run config of an installed app; this one is only a directory.
    monkeypatch.setattr(pytest.importorskip("flwr.compat.client.run_info_store"), "get_fused_config", lambda run: dict(read.config))
    message: Any = pytest.importorskip("flwr.app")
    context = message.Context(run_id=1, node_id=0, node_config={}, state=message.RecordDict(), run_config=dict(read.config))
    with importable(folder), witness.witnessed(outcome), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {"server_app": apps.server_app(read), "client_app": apps.client_app(read)}
        engine._run_simulation(num_supernodes=read.nodes, exit_event=None, server_app_context=context, **parts)
    return outcome


# Flower starts its ServerApp while its nodes still arrive, so the apps wait for all of them.
PATIENT = samples.STRATEGY.replace("min_available_nodes=2", "min_available_nodes=5, min_train_nodes=5, min_evaluate_nodes=5")
WAITING = samples.LEGACY.replace("kind(", "kind(min_available_clients=5, min_fit_clients=5, min_evaluate_clients=5, ")


@pytest.mark.parametrize("parts", [(samples.MESSAGES, PATIENT), (samples.NUMPY, WAITING)], ids=["messages", "legacy"])
def test_an_app_comes_to_what_flwr_comes_to(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str]) -> None:
    folder = app(*parts)
    ours, reference = simulate_app(folder), theirs(folder, monkeypatch)
    assert ours.arrays.keys() == reference.arrays.keys() == {"0", "1"}
    for name, array in reference.arrays.items():
        assert ours.arrays[name].dtype == array.dtype
        assert np.asarray(ours.arrays[name]) == pytest.approx(np.asarray(array), rel=1e-6)
    rounds: dict[tuple[str, int], dict[str, float]] = {(row.phase, row.number): row.metrics for row in ours.record.rounds}
    assert {key for key, values in reference.metrics.items() if values} <= rounds.keys()
    for key, values in reference.metrics.items():
        assert {name: rounds[key][name] for name in values} == pytest.approx(values, rel=1e-6)


def test_the_pytorch_quickstart_comes_to_what_flwr_comes_to(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Integer buffers, a config for training and an evaluation at the server among it."""
    monkeypatch.chdir(tmp_path)
    folder = app(test_templates.TORCH_CLIENT, test_templates.TORCH_SERVER)
    (folder / "sample" / "task.py").write_text(dedent(test_templates.TORCH_TASK))
    ours, reference = simulate_app(folder), theirs(folder, monkeypatch)
    assert ours.arrays.keys() == reference.arrays.keys() > {"norm.num_batches_tracked"}
    for name, array in reference.arrays.items():
        assert np.asarray(ours.arrays[name]) == pytest.approx(np.asarray(array), rel=1e-5, abs=1e-6)
