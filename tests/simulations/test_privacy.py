"""Privacy in simulations: the example of the documentation, what it costs, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fedscale as fs
from fedscale.data import Dataset, Population, from_arrays
from fedscale.errors import AppError, PlanError
from fedscale.learner import App, Phase, Result, Work
from fedscale.plan import Plan
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.rounds import spend_of
from fedscale.record import RunRecord
from fedscale.torch_learner import one_thread
from fedscale_simulations import budgets
from fedscale_simulations.simulator import simulate, simulate_file
from tests.simulations.samples import Mean, sites

EXAMPLE = """
import torch, fedscale as fs
from sklearn.datasets import load_digits
X, y = load_digits(return_X_y=True)
data = fs.data.from_arrays(X / 16, y).partition("dirichlet", clients=10, alpha=0.5, seed=0)
app = fs.App(model=lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)),
             loss=torch.nn.functional.cross_entropy, metrics=["accuracy"])
run = fs.simulate(app, data, strategy=fs.fed_avg(), rounds=20, secagg=True,
                  privacy=fs.DP(epsilon=8, delta=1e-5, clip=1.0, unit="record"))
print(run.summary())
run.report("digits.html")
"""
QUIET: dict[str, Any] = {"evaluate": {"every": 0}}
ONCE = fs.DP(epsilon=8, delta=1e-5, metrics="exact")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


def app(model: Any = lambda: nn.Linear(4, 2)) -> App:
    return App(model=model, loss=functional.cross_entropy, metrics=["accuracy"])


def rows(count: int = 120, patients: int | None = None) -> Dataset:
    rng = np.random.default_rng(4)
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, 4))
    features[:, 0] += 3 * labels
    return from_arrays(features, labels, groups=None if patients is None else np.arange(count) % patients)


def population(clients: int = 3, **options: Any) -> Population:
    return rows(**options).partition("iid", clients)


def privacy_of(record: RunRecord) -> dict[str, Any]:
    found = record.extra["privacy"]
    assert isinstance(found, dict)
    return found


@pytest.mark.requires("sklearn")
def test_the_example_of_thirteen_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.strip().splitlines()) <= 13
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "example", "exec"), {})  # noqa: S102 - the very lines that are shown
    shown = capsys.readouterr().out
    assert "completed after 20 rounds with 10 clients" in shown
    accuracy = re.search(r"evaluate .*accuracy ([0-9.]+)", shown)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.3
    spent = re.findall(r"client-\d{4}: epsilon ([0-9.]+)", shown)
    assert len(spent) == 10
    assert all(7.9 < float(each) <= 8.0 for each in spent)
    assert "Privacy" in (tmp_path / "digits.html").read_text(encoding="utf-8")


def test_what_each_client_has_spent_is_what_the_accountant_says() -> None:
    data = rows(160).partition("quantity", 3, 5, alpha=1.0)
    run = simulate(app(), data, rounds=3, privacy=ONCE)
    plan = Plan.from_toml(run.record.plan_toml)
    spent = privacy_of(run.record)
    assert spent["mechanism"] == "dpsgd"
    for name, part in data.items():
        each = spend_of(ONCE, plan.train, 3, Phase.TRAIN, len(part), masked=False)
        assert spent["sites"][name] == pytest.approx(epsilon([each] * 3, 1e-5), abs=1e-6)  # type: ignore[list-item]  # training always spends
    assert spent["epsilon"] == max(spent["sites"].values()) <= 8.0
    assert set(spent["sites"]) == set(data)


def test_a_client_that_was_asked_less_has_spent_less() -> None:
    run = simulate(app(), population(), rounds=3, clients={"select": 2}, privacy=ONCE, **QUIET)
    sites = privacy_of(run.record)["sites"]
    asked = {name: sum(name in row.answered for row in run.record.rounds) for name in sites}
    assert len(set(asked.values())) > 1
    assert min(sites, key=lambda name: sites[name]) == min(asked, key=lambda name: asked[name])


@pytest.mark.parametrize("unit", ["record", "patient", "node"])
@pytest.mark.parametrize("secagg", [None, True])
def test_every_unit_trains_and_repeats(unit: Any, secagg: Any) -> None:
    dp = fs.DP(epsilon=50, delta=1e-5, unit=unit, metrics="exact")
    data = population(4, patients=30)
    if unit == "node" and not secagg:
        with pytest.raises(PlanError, match="needs secure aggregation"):
            simulate(app(), data, rounds=2, secagg=secagg, privacy=dp)
        return
    runs = [simulate(app(), data, rounds=2, secagg=secagg, privacy=dp, seed=seed) for seed in (1, 1, 2)]
    assert [run.status for run in runs] == ["completed"] * 3, runs[0].record.reason
    assert runs[0].digest == runs[1].digest != runs[2].digest
    assert not any(row.metrics for row in runs[0].record.rounds if row.phase == "train"), "the loss of hidden rows stays at the site"


@pytest.mark.parametrize("secagg", [None, "exact"])
def test_processes_give_the_bits_of_one(secagg: Any) -> None:
    one, many = (simulate(app(), population(4), rounds=2, secagg=secagg, privacy=ONCE, engine=e, workers=2, **QUIET) for e in ("sequential", "pool"))
    assert one.digest == many.digest


def test_masks_change_no_bit_of_a_noisy_sum() -> None:
    ways = [simulate(app(), population(4), rounds=2, secagg=mode, privacy=ONCE, **QUIET) for mode in ("protocol", "exact")]
    assert ways[0].digest == ways[1].digest
    assert privacy_of(ways[0].record)["mechanism"] == "union"


def test_clients_that_hide_their_rows_are_never_trained_in_blocks() -> None:
    run = simulate(app(), population(), rounds=1, privacy=ONCE, engine="vectorized", **QUIET)
    engine = run.record.extra["engine"]
    assert isinstance(engine, dict)
    assert (engine["form"], engine["why"]) == ("sequential", "the plan hides the rows of each client")


def test_a_run_that_goes_on_counts_what_was_spent_before(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.number == 3 and progress.phase == "train":
            raise Enough

    whole = simulate(app(), population(), rounds=4, privacy=ONCE, **QUIET)
    with pytest.raises(Enough):
        simulate(app(), population(), rounds=4, privacy=ONCE, folder=tmp_path, on_progress=stop, **QUIET)
    later = simulate(app(), population(), rounds=4, privacy=ONCE, resume=tmp_path, **QUIET)
    assert later.digest == whole.digest
    assert privacy_of(later.record) == privacy_of(whole.record)


def test_a_job_file_has_a_table_for_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import numpy as np, torch\nfrom fedscale import App\nfrom fedscale.data import from_arrays\n"
        "app = App(model=lambda: torch.nn.Linear(3, 1), loss=torch.nn.functional.binary_cross_entropy_with_logits)\n"
        "def population(clients, seed):\n"
        "    return from_arrays(np.random.default_rng(1).normal(size=(60, 3)), np.arange(60) % 2).partition('iid', clients or 3)\n"
    )
    (tmp_path / "job.toml").write_text(
        '[job]\nname = "hidden"\n[strategy]\nrounds = 2\n[evaluate]\nevery = 0\n[privacy]\nepsilon = 3\ndelta = 1e-5\nclip = 0.5\n'
    )
    run = simulate_file(tmp_path / "job.toml")
    assert run.status == "completed", run.record.reason
    assert 2.9 < privacy_of(run.record)["epsilon"] <= 3.0
    assert "epsilon 3.000 of 3.000" in run.summary() or "of 3.000 at delta 1e-05 for each record (dpsgd)" in run.summary()


def test_noise_grows_as_the_promise_gets_stricter() -> None:
    def moved(dp: Any) -> float:
        run = simulate(app(), population(), rounds=1, privacy=dp, **QUIET)
        plain = simulate(app(), population(), rounds=1, privacy=fs.DP(epsilon=1e6, delta=1e-5), **QUIET)
        assert run.vector is not None
        assert plain.vector is not None
        return float(np.linalg.norm(run.vector - plain.vector))

    assert moved(fs.DP(epsilon=0.1, delta=1e-5)) > 3 * moved(fs.DP(epsilon=5, delta=1e-5))


def test_what_cannot_be_hidden_is_refused_before_the_first_round() -> None:
    with pytest.raises(AppError, match="batch norm cannot hide a record"):
        simulate(app(lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))), population(), privacy=ONCE, **QUIET)
    with pytest.raises(AppError, match="does not know how to hide a record"):
        simulate(Mean(), sites(), privacy=ONCE, **QUIET)
    with pytest.raises(PlanError, match="cannot run with privacy"):
        simulate(app(), population(), strategy=fs.fed_buff(), clients={"select": 2}, privacy=ONCE, **QUIET)
    with pytest.raises(PlanError, match="each site's metrics would leave"):
        simulate(app(), population(), privacy=fs.DP(epsilon=1, delta=1e-5))


def test_patients_that_are_not_named_end_the_run_with_the_reason() -> None:
    run = simulate(app(), population(), rounds=1, privacy=fs.DP(epsilon=1, delta=1e-5, unit="patient"), **QUIET)
    assert run.status == "failed"
    assert "not grouped by patient" in run.record.reason


def test_without_privacy_nothing_is_stated() -> None:
    run = simulate(app(), population(), rounds=1, **QUIET)
    assert "privacy" not in run.record.extra
    assert "privacy" not in run.summary()
    assert budgets.spends(Plan.from_toml(run.record.plan_toml), population(), ()) == {}


def test_union_learns_as_without_privacy_where_the_promise_is_loose() -> None:
    torch.manual_seed(0)
    dp = fs.DP(epsilon=1e5, delta=1e-5, clip=10.0)
    train = {"batch_size": 32, "optimizer": {"lr": 0.5}}
    hidden = simulate(app(), population(4, count=400), rounds=20, secagg=True, privacy=dp, train=train, aggregate={"bound": 32.0})
    assert hidden.metrics["evaluate.accuracy"] > 0.85


class Norms:
    """Changes the model by a vector of each client's own norm."""

    def run(self, work: Work) -> Result:
        if work.arrays is None:
            return Result({"w": np.zeros(500, np.float32)}, 0)
        return Result({"w": work.arrays["w"] + np.float32(work.data / 500**0.5)}, 1)


NORMS = {f"client-{at:02}": float(norm) for at, norm in enumerate(np.random.default_rng(3).lognormal(size=40))}
NODE: dict[str, Any] = {"epsilon": 200, "delta": 1e-5, "unit": "node"}


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_a_clip_finds_the_median_from_afar_and_costs_no_more(start: float) -> None:
    median = float(np.median(list(NORMS.values())))
    dp = fs.DP(**NODE, clip=start * median, clip_quantile=0.5)
    run = simulate(Norms(), NORMS, rounds=80, secagg="exact", clients={"min_per_round": 40}, privacy=dp, **QUIET)
    assert run.status == "completed", run.record.reason
    clips = [row.metrics["clip"] for row in run.record.rounds]
    assert clips[0] == pytest.approx(start * median)
    assert clips[-1] == pytest.approx(median, rel=0.35)
    assert 199 < privacy_of(run.record)["epsilon"] <= 200


MOVING = fs.DP(**NODE, clip=0.5, clip_quantile=0.5)
FOREST = fs.DP(**NODE, clip=0.5, mechanism="ftrl", tree_rounds=4)


@pytest.mark.parametrize(
    ("dp", "asked"), [(MOVING, {"secagg": "exact"}), (FOREST, {"clients": {"select": 9}}), (FOREST, {"clients": {"select": 9}, "secagg": True})]
)
def test_a_simulation_that_was_stopped_keeps_clip_and_tree(dp: Any, asked: dict[str, Any], tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.number == 3:
            raise KeyboardInterrupt

    whole = simulate(Norms(), NORMS, rounds=6, privacy=dp, **asked, **QUIET)
    assert whole.status == "completed", whole.record.reason
    with pytest.raises(KeyboardInterrupt):
        simulate(Norms(), NORMS, rounds=6, privacy=dp, folder=tmp_path, on_progress=stop, **asked, **QUIET)
    later = simulate(Norms(), NORMS, rounds=6, privacy=dp, resume=tmp_path, **asked, **QUIET)
    many = simulate(Norms(), NORMS, rounds=6, privacy=dp, engine="pool", workers=2, **asked, **QUIET)
    assert later.digest == whole.digest == many.digest
    assert privacy_of(later.record) == privacy_of(whole.record)


def test_trees_ask_each_client_once_and_each_answer_costs_one_tree() -> None:
    run = simulate(Norms(), NORMS, rounds=8, clients={"select": 9}, privacy=FOREST, **QUIET)
    for begun in (0, 4):
        answered = [name for row in run.record.rounds[begun : begun + 4] for name in row.answered]
        assert len(answered) == len(set(answered)) == 36
    told = privacy_of(run.record)
    plan = Plan.from_toml(run.record.plan_toml)
    once = spend_of(FOREST, plan.train, 8, Phase.TRAIN, 1, masked=False)
    assert once is not None
    counts = {name: sum(name in row.answered for row in run.record.rounds) for name in NORMS}
    assert set(counts.values()) == {0, 1, 2}
    assert told["sites"] == {name: pytest.approx(epsilon([once] * count, 1e-5)) for name, count in counts.items() if count}
    assert (told["mechanism"], told["neighbours"]) == ("ftrl", "zero the answers of one node")
    assert told["epsilon"] <= 200


def test_a_tree_without_enough_clients_ends_with_the_reason() -> None:
    run = simulate(Norms(), NORMS, rounds=4, clients={"select": 15, "min_per_round": 15}, privacy=FOREST, **QUIET)
    assert run.status == "failed"
    assert "round 3: all but 10 nodes have answered in this tree" in run.record.reason
