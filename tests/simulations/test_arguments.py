"""What people hand to ``fs.simulate`` and to the public constructors: what is wrong is said in our own errors, before anybody trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedscale as fs
from fedscale.errors import AppError, DataError, FedscaleError, PlanError
from fedscale.optimizers import sgd
from fedscale.sinks import Tracking
from fedscale.tables import Document
from fedscale_simulations.arguments import KINDS, described, plan_of, require_kinds
from fedscale_simulations.devices import Devices
from fedscale_simulations.masks import wanted_of

ROWS = np.arange(80.0).reshape(40, 2)
JOB = '[job]\nname = "a"\n'
NONE: Mapping[str, None] = dict.fromkeys(("clients", "train", "aggregate", "evaluate"))


class Half:
    """A learner that moves half a step."""

    def run(self, work: fs.Work) -> fs.Result:
        if work.arrays is None:
            return fs.Result({"w": np.zeros(2, np.float32)}, 0)
        loss = {"loss": np.array([float(len(work.data))])}
        trained = {"w": work.arrays["w"] + np.float32(0.5)} if work.phase is fs.Phase.TRAIN else None
        return fs.Result(trained, len(work.data), loss)


def rows(count: int = 40) -> fs.Dataset:
    return fs.data.from_arrays(ROWS[:count], np.arange(count) % 2)


def sites() -> fs.Population:
    return rows().partition("iid", clients=3)


def simulated(**given: Any) -> Any:
    options = {"rounds": 1, "engine": "sequential", **given}
    return fs.simulate(options.pop("app", Half()), options.pop("data", sites()), **options)


# --------------------------------------------------------------------------------------------------- tables made in Python

DP = {"epsilon": 1.0, "delta": 1e-5}
TABLES: list[tuple[type[Any], str, dict[str, Any], str]] = [
    (fs.DP, "privacy", {**DP, "epsilon": 0}, "epsilon: input should be greater than 0"),
    (fs.DP, "privacy", {**DP, "epsilon": float("nan")}, "epsilon: input should be a finite number"),
    (fs.DP, "privacy", {**DP, "clip": 0}, "clip: input should be greater than 0"),
    (fs.DP, "privacy", {**DP, "unit": "row"}, "unit: input should be 'record', 'patient' or 'node'"),
    (fs.DP, "privacy", {"epsilon": 1.0}, "'delta' is missing"),
    (fs.DP, "privacy", {**DP, "epsilom": 3}, "'epsilom' is not a setting; did you mean 'epsilon'?"),
    (fs.Secagg, "secagg", {"bits": 16}, "bits: input should be 24 or 32"),
    (fs.Clients, "clients", {"select": 0}, "select: write 'all', a number of nodes from 1 up, or a fraction between 0 and 1"),
    (fs.Clients, "clients", {"deadline": "20x"}, "deadline: a duration is a number and one of ms, s, m, h, d, as in '20m'"),
    (fs.Aggregate, "aggregate", {"bound": 0}, "bound: input should be greater than 0"),
    (fs.Evaluate, "evaluate", {"metrics": "accuracy"}, 'metrics: this is a list, as in ["accuracy"]'),
    (fs.Training, "train", {"optimizer": "adam"}, "optimizer: this is a table, with settings of its own; known: name, lr, momentum, weight_decay"),
    (fs.Training, "train", {"optimizer": {"lr": -1}}, "optimizer.lr: input should be greater than 0"),
    (fs.LocalOptimizer, "train.optimizer", {"lr": -1}, "lr: input should be greater than 0"),
]


@pytest.mark.parametrize(("table", "name", "given", "told"), TABLES)
def test_what_is_wrong_with_a_table_is_one_error_in_python_and_in_a_file(table: type[Any], name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError) as made:
        table(**given)
    assert str(made.value) == f"{table.__name__}: {told}"
    tree: dict[str, Any] = {"job": {"name": "a"}}
    place = tree
    for part in name.split("."):
        place = place.setdefault(part, {})
    place.update(given)
    with pytest.raises(PlanError) as read:
        Document("job.toml", tree, {}).read(fs.Plan)
    assert read.value.what.replace(f"{name}.", "") == made.value.what
    assert (read.value.where, read.value.hint) == ("job.toml", made.value.hint)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (fs.Plan, "Plan: 'job' is missing"),
        (lambda: fs.Plan(job={"name": "a b"}), "Plan: job.name: a name is 1 to 63 letters"),
        (lambda: fs.Plan(job={"name": "a", "app": "x"}), "Plan: job.app: write module:attribute"),
        (lambda: fs.Plan(job={"name": "a"}, privacy={"epsilon": 0, "delta": 0.1}), "Plan: privacy.epsilon: input should be"),
        (lambda: Devices(speed=0), "Devices: speed: input should be greater than 0"),
        (lambda: Tracking(sinks=("sv",)), "Tracking: sinks"),
    ],
)
def test_tables_within_tables_have_their_whole_path(make: Callable[[], object], told: str) -> None:
    with pytest.raises(PlanError) as caught:
        make()
    assert str(caught.value).startswith(told)


def test_a_good_table_is_what_it_was() -> None:
    dp = fs.DP(epsilon=2, delta=1e-5)
    assert fs.Plan.from_toml(f"{JOB}[privacy]\nepsilon = 2\ndelta = 1e-5\n[evaluate]\nevery = 0\n").privacy == dp
    assert dp.model_copy(update={"clip": 2.0}) != dp
    assert fs.Plan.model_validate({"job": {"name": "a"}, "train": fs.Training(epochs=3)}).train.epochs == 3


# ---------------------------------------------------------------------------------------------------------- parts of an app


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"model": None}, "the app's model is of type NoneType"),
        ({"model": type("Net", (), {"state_dict": dict, "__call__": dict})()}, "a module that is made already"),
        ({"loss": "mse"}, "the app's loss is of type str"),
        ({"loss": dict}, "the app's loss is the class dict; make one: loss=dict()"),
        ({"prepare": "scale"}, "the app's prepare is of type str"),
        ({"metrics": None}, "the app's metrics are of a wrong type"),
        ({"metrics": [len]}, "the app's metrics are of a wrong type"),
        ({"metrics": {"mine": 3}}, "the app's metric 'mine' is no function"),
    ],
)
def test_an_app_of_wrong_parts_is_refused_where_it_is_made(part: dict[str, Any], told: str) -> None:
    with pytest.raises(AppError) as caught:
        fs.App(**{"model": lambda: None, "loss": len, **part})
    assert told in str(caught.value)


def test_a_class_may_make_the_model() -> None:
    net, measure = type("Net", (), {"state_dict": dict}), max
    assert fs.App(model=net, loss=measure, metrics={"mine": measure}, prepare=list).model is net


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"optimizer": "sgd"}, "the optimizer is of type str"),
        ({"weighting": "rows"}, "there is no weighting 'rows'; known: examples, equal"),
        ({"proximal": -1.0}, "numbers from 0 up"),
        ({"staleness": float("nan")}, "numbers from 0 up"),
    ],
)
def test_a_strategy_of_wrong_parts_is_refused(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        fs.Strategy(**{"optimizer": sgd(1.0), **parts})


# ----------------------------------------------------------------------------------------------------------- data of clients


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fs.Dataset([1], [2]), "features of type list and labels of type list"),  # type: ignore[arg-type]
        (lambda: fs.Population.of([1]), "clients of type list"),  # type: ignore[arg-type]
        (lambda: fs.Population.of({"a": None}), "client 'a' is of type NoneType"),  # type: ignore[dict-item]
        (lambda: fs.Population.of({1: rows()}), "the name of a client is of type int"),  # type: ignore[dict-item]
        (lambda: fs.Population.of({"a": rows(0)}), "client 'a' has no rows"),
        (lambda: fs.Population.lazy(-1, lambda at: rows()), "at least one client"),
        (lambda: fs.Population.lazy(3, lambda at: rows(), rows=[1, 2]), r"rows of shape \(2,\) for 3 clients"),
        (lambda: rows().partition("iid", clients="3"), "the number of clients is of type str"),  # type: ignore[arg-type]
        (lambda: rows().partition("quantity", clients=3.0, alpha=1), "the number of clients is of type float"),  # type: ignore[arg-type]
        (lambda: rows().partition("iid", clients=3, seed="a"), "the seed is of type str"),  # type: ignore[arg-type]
    ],
)
def test_data_of_a_wrong_kind_are_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        make()


def test_numpys_whole_numbers_are_whole_numbers() -> None:
    assert len(rows().partition("iid", clients=np.int64(4), seed=np.int32(2))) == 4  # type: ignore[arg-type]


def test_sizes_may_be_one_number_or_one_each() -> None:
    for given in (7, [7, 7, 7]):
        sizes = fs.Population.lazy(3, lambda at: rows(7), rows=given).sizes
        assert sizes is not None
        assert sizes.tolist() == [7, 7, 7]


def broken(at: int) -> fs.Dataset:
    raise KeyError("no such file")


def test_data_that_cannot_be_made_name_the_client_and_the_cause() -> None:
    with pytest.raises(DataError, match=r"the data of client 'client-0001' cannot be made \(KeyError: 'no such file'\)") as caught:
        fs.Population.lazy(3, broken)["client-0001"]
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_of_ours_while_data_are_made_is_told_as_it_is() -> None:
    with pytest.raises(DataError, match="^the features are not one array"):
        fs.Population.lazy(3, lambda at: fs.data.from_arrays([[1], [1, 2]], [0, 1]))["client-0000"]


def test_a_client_whose_data_cannot_be_made_fails_alone_and_at_its_line() -> None:
    def make(at: int) -> fs.Dataset:
        return broken(at) if at == 1 else rows()

    run = simulated(data=fs.Population.lazy(3, make))
    assert run.status == "completed"
    failure = run.record.rounds[0].failures["client-0001"]
    assert (failure.cause, failure.where.partition(":")[0]) == ("data", "test_arguments.py")
    assert failure.what == "the data of client 'client-0001' cannot be made (KeyError: 'no such file')"


@pytest.mark.requires("torch")
def test_a_tensor_that_numpy_cannot_read_is_told_how() -> None:
    import torch

    with pytest.raises(DataError, match="detach the tensor"):
        fs.data.from_arrays(torch.zeros(3, 2, requires_grad=True), np.zeros(3))


# ------------------------------------------------------------------------------------------------------ arguments of simulate


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({"strategy": "fedavg"}, PlanError, "fs.simulate: strategy is of type str; write strategy=fs.fed_avg()"),
        ({"strategy": "fed_adam"}, PlanError, "fs.simulate: strategy is of type str; write strategy=fs.fed_adam()"),
        ({"strategy": fs.fed_prox}, PlanError, "fs.simulate: strategy is a function; write strategy=fs.fed_prox()"),
        ({"strategy": 3}, PlanError, "as in strategy=fs.fed_avg()"),
        ({"data": None}, DataError, "the data are of type NoneType"),
        ({"data": (ROWS, ROWS)}, DataError, "the data are of type tuple"),
        ({"data": {}}, DataError, "there are no clients"),
        ({"data": {1: rows()}}, DataError, "the name of a client is of type int"),
        ({"app": None}, AppError, "the app is of type NoneType"),
        ({"workers": 0}, PlanError, "fs.simulate: workers is 0; give a number of processes, from 1 up"),
        ({"workers": True}, PlanError, "workers is True"),
        ({"workers": "2"}, PlanError, "workers is of type str"),
        ({"rounds": None}, PlanError, "fs.simulate: strategy.rounds: input should be a valid integer"),
        ({"seed": 1.5}, PlanError, "job.seed: input should be a valid integer"),
        ({"name": "my run"}, PlanError, "job.name: a name is 1 to 63 letters"),
        ({"clients": 3}, PlanError, "fs.simulate: clients: this is a table, with settings of its own; known: select, min_per_round"),
        ({"train": "fast"}, PlanError, "train: this is a table"),
        ({"evaluate": False}, PlanError, "evaluate: this is a table"),
        ({"privacy": 8.0}, PlanError, "privacy: this is a table, with settings of its own; known: epsilon, delta"),
        ({"privacy": True}, PlanError, "privacy: this is a table"),
        ({"devices": 3}, PlanError, "devices: this is a table, with settings of its own; known: file, speed"),
        ({"secagg": 3}, PlanError, "secagg is of type int; give True, one of auto, protocol, exact"),
        ({"plan": "job.toml"}, PlanError, 'plan is of type str; read one with fs.Plan.load(Path("job.toml"))'),
        ({"folder": 3}, PlanError, "folder is of type int"),
        ({"resume": True}, PlanError, "resume is of type bool"),
        ({"on_progress": None}, PlanError, "on_progress is of type NoneType"),
    ],
)
def test_an_argument_of_a_wrong_kind_is_told_with_the_right_one(given: dict[str, Any], kind: type[FedscaleError], told: str) -> None:
    with pytest.raises(kind) as caught:
        simulated(**given)
    assert told in str(caught.value)


def test_the_numbers_of_numpy_are_numbers_of_a_plan() -> None:
    plain = simulated(train={"epochs": 1, "optimizer": {"lr": 0.5}})
    other = simulated(train={"epochs": np.int64(1), "optimizer": {"lr": np.float64(0.5)}, "max_steps": None})
    assert other.record.plan_hash == plain.record.plan_hash


def test_nothing_is_refused_that_may_be_left_out() -> None:
    require_kinds(strategy=None, plan=None, folder=None, resume=Path("a"), workers=2, on_progress=print)
    assert set(KINDS) == {"strategy", "plan", "folder", "resume", "workers", "on_progress"}
    assert [wanted_of(value)[0] is not None for value in (None, False, True, "exact")] == [False, False, True, True]


def test_the_plan_of_arguments_is_that_of_a_file() -> None:
    tables = {**NONE, "job": {"name": "a"}, "strategy": {**described(fs.fed_adam(lr=0.5)), "rounds": 4}}
    ours = plan_of({**tables, "clients": fs.Clients(select=3)}, ("accuracy",), 3)
    file = '[strategy]\nname = "fedadam"\nlr = 0.5\nrounds = 4\n[clients]\nselect = 3\n[evaluate]\nmetrics = ["accuracy"]\n'
    assert ours.digest == fs.Plan.from_toml(JOB + file).digest
