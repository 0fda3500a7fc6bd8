from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedscale as fs
from fedscale.data import Dataset, Population
from fedscale.errors import AppError, ConfigError, DataError, NotFound, PlanError
from fedscale.learner import LocalOptimizer, Training
from fedscale.plan import Clients, Evaluate, Plan
from fedscale.sampling import derived_seed
from fedscale.torch_learner import one_thread
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, sites


def test_a_folder_that_cannot_be_used_is_told_before_anybody_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Mean, "run", Mock(side_effect=AssertionError("a client is asked")))
    with pytest.raises(ConfigError, match="the folder cannot be used"):
        simulate(Mean(), sites(3), rounds=1, folder=tmp_path / "file")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("sklearn", reason="pip install 'fedscale-fl[demo]'")
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return fs.data.from_arrays(x / 16, y)


@pytest.fixture(scope="module")
def population(digits: Dataset) -> Population:
    return digits.partition("dirichlet", clients=6, alpha=1.0, seed=0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def app() -> fs.App:
    return fs.App(model=network, loss=functional.cross_entropy, metrics=["accuracy"])


def fast(lr: float = 0.5, **rest: Any) -> dict[str, Any]:
    return {"optimizer": {"lr": lr}, "device": "cpu", **rest}


# --------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("strategy", [fs.fed_avg(), fs.fed_prox(mu=0.01), fs.fed_avgm(momentum=0.3)], ids=lambda s: s.name)
def test_digits_are_learnt_by_clients_that_see_different_ones(population: Population, app: fs.App, strategy: fs.Strategy) -> None:
    run = simulate(app, population, strategy=strategy, rounds=8, train=fast(epochs=3))
    assert run.metrics["evaluate.accuracy"] > 0.9
    assert f'name = "{strategy.name}"' in run.record.plan_toml


def test_batch_norm_and_dropout_are_learnt_with(population: Population) -> None:
    app = fs.App(model=normalized, loss=functional.cross_entropy, metrics=["accuracy"])
    run = simulate(app, population, rounds=8, train=fast(0.2))
    assert run.metrics["evaluate.accuracy"] > 0.9
    assert run.model["1.running_var"].min() > 0
    assert not np.allclose(run.model["1.running_mean"], 0)


def test_one_client_is_the_plain_torch_loop(digits: Dataset, app: fs.App) -> None:
    part, seed, rounds = digits.take(np.arange(200)), 4, 3
    run = simulate(
        app,
        {"only": part},
        seed=seed,
        rounds=rounds,
        train=fast(epochs=2, batch_size=16),
        aggregate={"weight_cap": 200},
        evaluate={"every": 0, "holdout": 0},
    )
    torch.manual_seed(seed)
    module = network()
    x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
    with one_thread():
        for number in range(1, rounds + 1):
            optimizer = torch.optim.SGD(module.parameters(), 0.5)
            bits = np.random.Philox(key=derived_seed(seed, number, "only"))
            for _ in range(2):
                for rows in torch.from_numpy(np.argsort(bits.random_raw(200), kind="stable")).split(16):
                    optimizer.zero_grad()
                    functional.cross_entropy(module(x[rows]), y[rows]).backward()
                    optimizer.step()
    for name, expected in module.state_dict().items():
        assert np.allclose(run.model[name], expected.numpy(), atol=1e-6)


def test_a_proximal_term_keeps_clients_near_the_global_model(population: Population, app: fs.App) -> None:
    def moved(strategy: fs.Strategy) -> float:
        first = simulate(app, population, rounds=1, train={"optimizer": {"lr": 1e-9}, "device": "cpu"}).vector
        last = simulate(app, population, rounds=1, strategy=strategy, train=fast(epochs=5)).vector
        assert first is not None
        assert last is not None
        return float(np.linalg.norm(last - first))

    assert moved(fs.fed_prox(mu=1.0)) < 0.8 * moved(fs.fed_avg())


def test_the_same_seed_gives_the_same_bits_in_any_order_of_clients(population: Population) -> None:
    app = fs.App(model=normalized, loss=functional.cross_entropy)
    turned = Population.of({name: population[name] for name in reversed(population.names)})
    options: dict[str, Any] = {"rounds": 2, "train": fast(), "seed": 3}
    digest = simulate(app, population, **options).digest
    assert simulate(app, turned, **options).digest == digest
    assert simulate(app, population, **options | {"seed": 4}).digest != digest


def test_an_interrupted_training_goes_on_to_the_same_bits(population: Population, tmp_path: Path) -> None:
    app = fs.App(model=normalized, loss=functional.cross_entropy)
    options: dict[str, Any] = {"rounds": 3, "train": fast(), "strategy": fs.fed_adam(lr=0.05)}

    def stop(progress: Any) -> None:
        if (progress.number, progress.phase, progress.done) == (2, "train", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(app, population, folder=tmp_path, on_progress=stop, **options)
    assert simulate(app, population, resume=tmp_path, **options).digest == simulate(app, population, **options).digest


def test_a_first_model_is_that_of_a_seeded_torch(population: Population, app: fs.App) -> None:
    run = simulate(app, population, seed=11, rounds=1, train={"optimizer": {"lr": 1e-12}, "device": "cpu"}, evaluate={"every": 0})
    torch.manual_seed(11)
    for name, expected in network().state_dict().items():
        assert np.array_equal(run.model[name], expected.numpy())


# ---------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.requires("sklearn")
def test_the_pooled_auc_is_that_of_all_patients_together() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(2)
    x = rng.normal(size=(900, 5))
    y = (x @ [1.0, -1.0, 0.5, 0.0, 0.0] + rng.normal(size=900) > 0).astype(int)
    data = fs.data.from_arrays(x, y).partition("quantity", clients=5, alpha=2.0)
    app = fs.App(model=lambda: nn.Linear(5, 1), loss=functional.binary_cross_entropy_with_logits, metrics=["auc", "brier", "accuracy"])
    run = simulate(app, data, rounds=4, train=fast(0.1), evaluate={"holdout": 0.3})
    held_out = Dataset.concat([part.split(0.3, 0)[1] for part in data.values()])
    scores = held_out.x @ run.model["weight"][0] + run.model["bias"]
    chances = 1 / (1 + np.exp(-scores))
    assert run.metrics["evaluate.auc"] == pytest.approx(roc_auc_score(held_out.y, scores), abs=1 / 256)
    assert run.metrics["evaluate.auc"] > 0.75
    assert run.metrics["evaluate.brier"] == pytest.approx(np.square(chances - held_out.y).mean(), abs=1e-5)
    assert run.metrics["evaluate.accuracy"] == pytest.approx(((scores > 0) == held_out.y).mean(), abs=1e-6)


def test_metrics_are_the_apps_unless_an_evaluation_names_its_own(population: Population, app: fs.App) -> None:
    def names(**evaluate: Any) -> set[str]:
        run = simulate(app, population, rounds=1, train=fast(), evaluate=evaluate)
        return set(run.record.rounds[-1].metrics)

    assert names() == names(holdout=0.5) == {"loss", "accuracy"}
    assert names(metrics=["brier"]) == {"loss", "brier"}
    assert names(metrics=[]) == {"loss"}


def test_own_metrics_are_pooled_over_all_sites(population: Population) -> None:
    def top_three(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.topk(3).indices == targets[:, None]).any(1)

    app = fs.App(model=network, loss=functional.cross_entropy, metrics={"top_three": top_three})
    run = simulate(app, population, rounds=4, train=fast(), evaluate={"metrics": ["top_three", "accuracy"]})
    assert 1 >= run.metrics["evaluate.top_three"] > run.metrics["evaluate.accuracy"]


def test_a_site_that_diverges_is_named_and_left_out(population: Population) -> None:
    wild = fs.data.from_arrays(population[population.names[0]].x * 1e30, population[population.names[0]].y)
    data = Population.of({**population, "client-0000": wild})
    app = fs.App(model=network, loss=functional.cross_entropy, metrics=["accuracy"])
    run = simulate(app, data, rounds=2, train=fast())
    failures = [failure for row in run.record.rounds for failure in row.failures.values()]
    assert {str(failure.cause) for failure in failures} == {"diverged"}
    assert run.status == "completed"


def test_a_clients_data_are_cut_and_prepared_once(population: Population) -> None:
    prepared: list[int] = []

    def prepare(data: Dataset) -> Dataset:
        prepared.append(len(data))
        return data

    app = fs.App(model=network, loss=functional.cross_entropy, prepare=prepare)
    run = simulate(app, population, rounds=3, train=fast(), engine="sequential")  # other processes would prepare for themselves
    assert len(prepared) == 2 * len(population)
    assert sum(prepared) == sum(len(part) for part in population.values())
    assert run.record.rounds[1].weight == sum(len(part.split(0.2, 0)[1]) for part in population.values())


def test_torch_datasets_can_be_clients() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int64)
    app = fs.App(model=lambda: nn.Linear(3, 2), loss=functional.cross_entropy, metrics=["accuracy"])
    parts = {f"site-{at}": torch.utils.data.TensorDataset(torch.from_numpy(x[at::3]), torch.from_numpy(y[at::3])) for at in range(3)}
    run = simulate(app, parts, rounds=10, train=fast())
    assert run.metrics["evaluate.accuracy"] > 0.9


# -------------------------------------------------------------------------------------------------------------- arguments


def test_tables_may_be_values_or_mappings() -> None:
    run = simulate(
        Mean(),
        sites(),
        rounds=2,
        clients=Clients(select=2),
        train=Training(epochs=3, optimizer=LocalOptimizer(lr=0.2)),
        evaluate=Evaluate(every=0),
        aggregate={"bound": 4.0},
    )
    plan = Plan.from_toml(run.record.plan_toml)
    assert (plan.clients.select, plan.train.epochs, plan.train.optimizer.lr) == (2, 3, 0.2)
    assert (plan.evaluate.every, plan.aggregate.bound, plan.strategy.rounds) == (0, 4.0, 2)
    same = simulate(
        Mean(), sites(), rounds=2, clients={"select": 2}, train={"epochs": 3, "optimizer": {"lr": 0.2}}, evaluate={"every": 0}, aggregate={"bound": 4}
    )
    assert same.record.plan_hash == run.record.plan_hash


def test_the_arguments_of_a_strategy_are_in_the_plan() -> None:
    plan = Plan.from_toml(simulate(Mean(), sites(), strategy=fs.fed_adam(lr=0.2, beta1=0.5), rounds=1).record.plan_toml)
    assert plan.strategy.model_extra == {"lr": 0.2, "beta1": 0.5}
    assert Plan.from_toml(simulate(Mean(), sites(), rounds=1).record.plan_toml).strategy.name == "fedavg"


def test_the_simulators_plan_can_be_simulated_again() -> None:
    run = simulate(Mean(), sites(), strategy=fs.fed_yogi(), rounds=3, seed=8)
    again = simulate(Mean(), sites(), plan=Plan.from_toml(run.record.plan_toml))
    assert again.digest == run.digest
    assert again.record.plan_hash == run.record.plan_hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, r"strategy.rounds: input should be greater than or equal to 1"),
        ({"seed": -1}, r"job.seed: "),
        ({"name": "a name with spaces"}, r"job.name: "),
        ({"clients": {"selct": 3}}, r"'clients.selct' is not a setting; did you mean 'select'"),
        ({"train": {"epochs": 0}}, r"train.epochs: "),
        ({"evaluate": {"monitor": "auc"}}, r"evaluate.monitor.*'auc' is not among the metrics"),
        ({"clients": {"select": 2, "min_per_round": 3}}, r"clients.select asks .* but clients.min_per_round"),
        ({"plan": Plan.model_validate({"job": {"name": "a"}}), "train": {"epochs": 2}}, r"a plan is given and 'train' as well"),
        ({"plan": Plan.model_validate({"job": {"name": "a"}}), "strategy": fs.fed_avg()}, r"the plan names a strategy and one is given"),
    ],
)
def test_arguments_are_checked_like_a_plan(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        simulate(Mean(), sites(), **options)


def test_what_is_no_app_and_no_data_is_refused(digits: Dataset, app: fs.App) -> None:
    with pytest.raises(AppError, match="the app is of type str"):
        simulate("app", sites())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="one dataset"):
        simulate(app, digits)  # type: ignore[arg-type]
    with pytest.raises(AppError, match=r"no metric 'acuracy'.*did you mean 'accuracy'"):
        simulate(fs.App(model=network, loss=functional.cross_entropy, metrics=["acuracy"]), sites())


def test_a_checkpoint_must_be_where_it_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint"):
        simulate(Mean(), sites(), resume=tmp_path / "nowhere", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_lazy_export_is_the_simulator() -> None:
    assert fs.simulate is simulate


def test_threads_are_put_back(monkeypatch: pytest.MonkeyPatch, population: Population, app: fs.App) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    seen: set[int] = set()

    def watch(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return functional.cross_entropy(outputs, targets)

    simulate(fs.App(model=network, loss=watch), population, rounds=1, train=fast())
    assert seen == {1}
    assert torch.get_num_threads() == 2
