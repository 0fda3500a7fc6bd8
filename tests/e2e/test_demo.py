"""``fedscale demo`` as a person runs it, and its claim checked by other means than ours: torch's own layers, sklearn's AUC."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from fedscale.data import from_csv
from fedscale.plan import Plan
from fedscale_simulations.cast import program
from fedscale_simulations.job import importable
from tests.command import Done
from tests.e2e.federation import environment

pytestmark = [pytest.mark.requires("torch", "sklearn"), pytest.mark.timeout(600)]

HOSPITALS = {"north", "east", "south", "west"}
CLOSE_ENOUGH = 0.02
BINNED = 0.005


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def done(folder: Path) -> Done:
    """The demonstration in an empty folder."""
    ended = subprocess.run([*program(), "demo"], capture_output=True, text=True, cwd=folder, env=environment(), timeout=500, check=False)
    return Done(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def left(done: Done, folder: Path) -> dict[str, Any]:
    """The summary it leaves."""
    assert done.code == 0, done.err
    summary: dict[str, Any] = json.loads((folder / "runs/demo/summary.json").read_text())
    return summary


def scores(model: dict[str, npt.NDArray[np.float32]], rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the exported network says, computed by hand."""
    hidden = np.maximum(rows @ model["0.weight"].T + model["0.bias"], 0)
    answers: npt.NDArray[np.float32] = (hidden @ model["2.weight"].T + model["2.bias"])[:, 0]
    return answers


def test_the_summary_has_what_it_must(left: dict[str, Any], folder: Path) -> None:
    assert (left["nodes"], left["rounds"], left["status"], left["failures"]) == (4, 12, "completed", 0)
    assert set(left["epsilon_by_site"]) == HOSPITALS
    assert left["epsilon"] == max(left["epsilon_by_site"].values())
    assert 3.5 < left["epsilon"] <= 4
    assert left["secagg"] == "protocol"
    assert left["bytes_up"] > 0
    assert left["bytes_down"] > 0
    assert 0 < left["seconds"] < left["total_seconds"]
    page = (folder / left["report"]).read_text()
    assert page.startswith("<!doctype html>")
    for address in ("http://", "https://"):
        assert address not in page.replace("http://www.w3.org/", "")


def test_federating_was_worth_it(left: dict[str, Any]) -> None:
    auc = left["auc"]
    assert set(auc["alone"]) == HOSPITALS
    assert auc["alone_mean"] == pytest.approx(fmean(auc["alone"].values()))
    assert auc["federated"] > auc["alone_mean"]
    assert auc["pooled"] - auc["federated"] <= CLOSE_ENOUGH
    # A reader of the file may take `alone` for one number or for one a hospital; both stand there.
    values = (*auc["alone"].values(), auc["alone_mean"], auc["federated"], auc["pooled"])
    assert all(isinstance(value, float) and 0.5 < value <= 1 for value in values)


def test_an_independent_calculation_agrees(left: dict[str, Any], folder: Path) -> None:
    from sklearn.metrics import roc_auc_score

    job = folder / "runs/demo/job/job.toml"
    plan = Plan.load(job)
    with importable(job.parent):
        hospitals = importlib.import_module("app")

        tables = {site: from_csv(folder / f"runs/demo/sites/{site}/patients.csv", "malignant") for site in sorted(HOSPITALS)}
        held_out = [hospitals.prepare(rows.split_alone(plan.evaluate.holdout, plan.job.seed)[1]) for rows in tables.values()]
    assert sum(map(len, tables.values())) == 569
    model = load_file(folder / "runs/demo/model.safetensors")
    said = np.concatenate([scores(model, rows.x) for rows in held_out])
    truth = np.concatenate([rows.y for rows in held_out])
    assert roc_auc_score(truth, said) == pytest.approx(left["auc"]["federated"], abs=BINNED)
    assert left["evaluate.auc"] == pytest.approx(left["auc"]["federated"], abs=1e-9)


def test_somebody_who_watches_sees_every_step_and_the_answer_last(done: Done, left: dict[str, Any]) -> None:
    for command in ("server init", "server start", "project create", "project invite", "node join", "node data add", "node start", "run submit"):
        assert f"$ fedscale {command}" in done.err
    for number in range(1, 13):
        assert f"train {number}/12" in done.err
        assert (f"evaluate {number}/12" in done.err) == (number % 2 == 0)
    shown = [line.split() for line in done.out.splitlines() if line.strip()]
    for site in HOSPITALS:
        row = next(line for line in shown if line[:2] == [site, "alone"])
        assert float(row[-1]) == pytest.approx(left["auc"]["alone"][site], abs=0.0005)
    assert ["report", left["report"]] in shown
    assert next(line for line in shown if line[:2] == ["secure", "aggregation"])[2] == "yes:"
