"""The same plan, seed and learner in the simulator and through real processes: the same model, bit for bit.

Five sites of very different sizes join a coordinator over mutual TLS; the simulator has five clients of the same names with
the same rows. Nothing is set that a deployment would not have: no number of threads, no order of answers.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedscale.data import Dataset, from_arrays, from_csv
from fedscale.errors import Cause
from fedscale.plan import Plan
from fedscale.record import RunRecord
from fedscale_simulations.comparison import write_csv
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate
from tests.e2e.federation import Federation, Process

pytestmark = [pytest.mark.requires("torch", "sklearn"), pytest.mark.timeout(900)]

# Rows of digits at each site, from a practice to a university hospital; the first three have biopsies as well.
SIZES = {"aspen": 24, "birch": 61, "cedar": 187, "dogwood": 405, "elm": 1120}
BIOPSIES = {"aspen": 41, "birch": 128, "cedar": 400}
ALL = {"wait_for": 5, "min_per_round": 3, "deadline": 100.0}
MOMENTUM = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}


@dataclass(frozen=True)
class Both:
    """One job, simulated and deployed."""

    simulated: Simulation
    record: RunRecord
    events: Process
    model: Mapping[str, np.ndarray[Any, Any]]


def spread(sizes: Mapping[str, int], rows: Dataset) -> dict[str, Dataset]:
    """The first rows to the first site, and so on."""
    ends = np.cumsum(list(sizes.values()))
    return {name: rows.take(np.arange(end - sizes[name], end)) for name, end in zip(sizes, ends.tolist(), strict=True)}


@pytest.fixture(scope="module")
def digits() -> dict[str, Dataset]:
    """Images of 8 x 8 with the number of their site as their group, in random order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.Generator(np.random.Philox(3)).permutation(len(labels))
    parts = spread(SIZES, from_arrays(images[order].reshape(-1, 1, 8, 8) / 16, labels[order]))
    # Two rows a patient: what is held out is held out by patient.
    return {name: from_arrays(part.x, part.y, at + len(SIZES) * (np.arange(len(part)) // 2)) for at, (name, part) in enumerate(parts.items())}


@pytest.fixture(scope="module")
def biopsies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tables as files."""
    from sklearn.datasets import load_breast_cancer

    cohort, folder = load_breast_cancer(), tmp_path_factory.mktemp("biopsies")
    columns = [name.replace(" ", "_") for name in cohort.feature_names]
    parts = spread(BIOPSIES, from_arrays(cohort.data, cohort.target, columns=columns))
    for name, part in parts.items():
        write_csv(folder / f"{name}.csv", part, "benign")
    return {name: folder / f"{name}.csv" for name in parts}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Dataset], biopsies: dict[str, Path]) -> Iterator[Federation]:
    """A coordinator and the five sites."""
    folder = tmp_path_factory.mktemp("parity")
    for name, part in digits.items():
        np.savez(folder / f"{name}.npz", x=part.x, y=part.y, groups=np.asarray(part.groups))

    def datasets(name: str) -> dict[str, tuple[object, ...]]:
        declared: dict[str, tuple[object, ...]] = {"digits": ("--path", folder / f"{name}.npz", "--group", "groups")}
        return declared | ({"biopsies": ("--path", biopsies[name], "--label", "benign")} if name in biopsies else {})

    with Federation(folder) as made:
        made.join_all(SIZES, datasets)
        yield made


def both(federation: Federation, folder: Path, app: str, data: Mapping[str, Dataset], name: str, **tables: Any) -> Both:
    """Simulate and deploy one job."""
    module: ModuleType = importlib.import_module(f"tests.parity.{app.partition(':')[0]}")
    plan = Plan.model_validate({"job": {"name": "parity", "app": app, "data": name, "seed": 5}, "clients": ALL, **tables})
    (folder / Path(str(module.__file__)).name).write_text(Path(str(module.__file__)).read_text())
    (folder / "job.toml").write_text(plan.to_toml())
    run = federation.submit(folder / "job.toml")
    events = federation.watch(run)
    simulated = simulate(getattr(module, app.partition(":")[2]), data, plan=plan)
    events.wait()
    federation.manage("run", "export", run, "--out", folder / "model.safetensors")
    return Both(simulated, federation.record(run), events, load_file(folder / "model.safetensors"))


def assert_equal(pair: Both) -> None:
    """Everything that is not a matter of time or transport is the same, to the last bit."""
    ours, theirs = pair.simulated.record, pair.record
    assert (ours.status, ours.reason) == (theirs.status, theirs.reason) == ("completed", "")
    assert ours.plan_hash == theirs.plan_hash
    for one, other in zip(ours.rounds, theirs.rounds, strict=True):
        assert (one.number, one.phase, one.answered, one.weight) == (other.number, other.phase, other.answered, other.weight)
        assert json.dumps([one.metrics, one.sites]) == json.dumps([other.metrics, other.sites])
        assert {node: failure.cause for node, failure in one.failures.items()} == {node: failure.cause for node, failure in other.failures.items()}
    assert pair.model.keys() == pair.simulated.model.keys()
    for name, values in pair.model.items():
        assert values.tobytes() == pair.simulated.model[name].tobytes(), name
    assert ours.model_digest == theirs.model_digest


def test_logistic_regression(federation: Federation, biopsies: dict[str, Path], tmp_path: Path) -> None:
    data = {name: from_csv(path, "benign") for name, path in biopsies.items()}
    pair = both(
        federation,
        tmp_path,
        "logistic:app",
        data,
        "biopsies",
        strategy={"name": "fedavg", "rounds": 4},
        clients={**ALL, "wait_for": 3},
        train={"batch_size": 16, "optimizer": {"lr": 0.1}, "epochs": 2},
        evaluate={"metrics": ["auc", "brier"], "every": 2},
    )
    assert_equal(pair)
    assert set(pair.record.nodes) == set(BIOPSIES)
    assert pair.record.rounds[-1].metrics["auc"] > 0.9


def test_a_perceptron_with_adam_at_the_server_and_sites_that_answer_in_any_order(
    federation: Federation, digits: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = perceptron(federation, digits, tmp_path, monkeypatch, "perceptron:app")
    assert_equal(pair)
    orders = [tuple(order) for order in arrivals(pair.events).values()]
    assert {frozenset(order) for order in orders} == {frozenset(SIZES)}
    assert len(set(orders)) > 1, "the sites were to answer in different orders"
    assert pair.record.rounds[-1].metrics["accuracy"] > pair.record.rounds[1].metrics["accuracy"]


def test_a_site_that_fails_in_the_second_round(
    federation: Federation, digits: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = perceptron(federation, digits, tmp_path, monkeypatch, "perceptron:failing")
    assert_equal(pair)
    failures = {(row.phase, row.number): {node: failure.cause for node, failure in row.failures.items()} for row in pair.record.rounds}
    assert {place: named for place, named in failures.items() if named} == {("train", 2): {"cedar": Cause.CODE}}


def test_a_convolutional_network_with_batch_norm(federation: Federation, digits: dict[str, Dataset], tmp_path: Path) -> None:
    pair = both(
        federation,
        tmp_path,
        "convolution:app",
        digits,
        "digits",
        strategy={"name": "fedprox", "rounds": 3, "mu": 0.01},
        clients={**ALL, "select": 4},
        train={"batch_size": 32, "optimizer": {"name": "adam", "lr": 0.005}, "max_steps": 20},
        evaluate={"metrics": ["accuracy", "brier"], "every": 3, "select": "all", "holdout": 0.25},
    )
    assert_equal(pair)
    assert {len(row.answered) for row in pair.record.rounds if row.phase == "train"} == {4}
    assert not np.allclose(pair.model["1.running_mean"], 0)
    assert "1.num_batches_tracked" not in pair.model


def perceptron(federation: Federation, digits: dict[str, Dataset], folder: Path, monkeypatch: pytest.MonkeyPatch, app: str) -> Both:
    """The job with FedAdam over momentum; simulated clients need not wait to be late."""
    monkeypatch.setattr("tests.parity.perceptron.LONGEST_PAUSE", 0.0)
    return both(
        federation,
        folder,
        app,
        digits,
        "digits",
        strategy={"name": "fedadam", "rounds": 4, "lr": 0.02},
        train={"batch_size": 20, "optimizer": MOMENTUM},
        evaluate={"metrics": ["accuracy"], "every": 1, "min_cell": 5},
    )


def arrivals(events: Process) -> dict[tuple[str, int], list[str]]:
    """In which order the answers of each phase arrived."""
    found: dict[tuple[str, int], list[str]] = {}
    for event in events.events():
        if event["kind"] == "answered":
            found.setdefault((event["phase"], event["number"]), []).append(event["node"])
    return found
