"""The worker and a plan that asks for privacy: nothing is trained without it, however often the worker starts anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.errors import AppError, DataError, PlanError
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.ring import WORD
from fedscale.task import layout_for
from fedscale.vector import Schema
from fedscale_client import worker as worker_module
from fedscale_client.declarations import Declaration
from fedscale_client.worker import Bench

SCHEMA = Schema.of({"weight": np.zeros((1, 2), np.float32), "bias": np.zeros(1, np.float32)})
PRIVATE = {"epsilon": 1.0, "delta": 1e-5}
APP = """
import torch
from fedscale import App
app = App(model=lambda: torch.nn.Linear(2, 1), loss=torch.nn.functional.binary_cross_entropy_with_logits)
"""
IGNORANT = """
import numpy as np
from fedscale.learner import Result
class Ignorant:
    def run(self, work):
        return Result({"weight": np.ones((1, 2), np.float32), "bias": np.ones(1, np.float32)}, 40, {"loss": np.ones(1)})
app = Ignorant()
"""


class Site:
    """A folder with a bundle, rows and a model; every call may be to a new worker."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, app: str) -> None:
        self.folder, self._patch = folder, monkeypatch
        (folder / "bundle").mkdir()
        self.module = f"app_{abs(hash(folder)) % 10**9}"
        (folder / "bundle" / f"{self.module}.py").write_text(app)
        lines = [f"{at % 7},{at % 5},{at % 2},p{at // 4}" for at in range(40)]
        (folder / "rows.csv").write_text("\n".join(["a,b,y,patient", *lines]) + "\n")
        (folder / "model").write_bytes(np.zeros(SCHEMA.size, "<f4").tobytes())
        monkeypatch.setattr(sys, "path", list(sys.path))
        self.bench = self.started()

    def started(self, group: str | None = None) -> Bench:
        declaration = Declaration(kind="csv", path=str(self.folder / "rows.csv"), label="y", columns=("a", "b"), group=group)
        told = declaration.model_dump(mode="json")
        return Bench({"bundle": str(self.folder / "bundle"), "home": str(self.folder), "dataset": "rows", "declaration": told})

    def plan(self, privacy: dict[str, Any] | None = PRIVATE) -> Plan:
        tables = {"job": {"name": "hidden", "app": f"{self.module}:app"}, "strategy": {"rounds": 5}, "evaluate": {"every": 0}}
        return Plan.model_validate(tables | ({} if privacy is None else {"privacy": privacy}))

    def train(self, privacy: dict[str, Any] | None = PRIVATE) -> np.ndarray[Any, Any]:
        plan = self.plan(privacy)
        request = {"plan": plan.to_toml(), "node": "mercy", "phase": "train", "number": 1, "terms": 2, "clip": 0.0, "schema": SCHEMA.to_json()}
        self.bench.perform({**request, "model": str(self.folder / "model"), "answer": str(self.folder / "answer")}, lambda _: None)
        layout = layout_for(plan, Phase.TRAIN, SCHEMA.size, 2)
        words = np.frombuffer((self.folder / "answer").read_bytes(), WORD)
        return layout.mean(words, layout.tail(words)[0])


def test_no_two_answers_of_a_private_worker_are_alike_also_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, monkeypatch, APP)
    answers = [site.train()]
    for _ in range(2):
        site.bench = site.started()
        answers += [site.train(), site.train()]
    assert len({answer.tobytes() for answer in answers}) == 5
    plain, again = site.train(None), site.train(None)
    assert np.array_equal(plain, again)
    assert np.array(answers).std(0).min() > 0, "there is noise in every coordinate"


def test_a_learner_that_ignores_privacy_is_refused_however_often_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, monkeypatch, IGNORANT)
    assert site.train(None).size == SCHEMA.size
    for _ in range(2):
        with pytest.raises(AppError, match="does not know how to hide a record"):
            site.train()
        site.bench = site.started()


def test_patients_are_those_of_the_declared_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, monkeypatch, APP)
    with pytest.raises(DataError, match="not grouped by patient"):
        site.train({**PRIVATE, "unit": "patient"})
    site.bench = site.started("patient")
    assert np.isfinite(site.train({**PRIVATE, "unit": "patient"})).all()


def test_a_worker_that_does_not_work_out_privacy_cannot_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, monkeypatch, APP)
    monkeypatch.setattr(worker_module, "private_for", lambda *_: None)
    with pytest.raises(PlanError, match="would train without"):
        site.train()
