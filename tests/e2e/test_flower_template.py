"""The template of a Flower app, from ``fedscale init`` to two hospitals with tables of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.federation import Federation

pytestmark = [pytest.mark.requires("flower", "torch"), pytest.mark.timeout(600)]

PATIENCE = 250.0
SITES = ("ann", "bob")
COLUMNS = ("age", "pressure", "glucose", "creatinine", "lactate", "rate")
TOGETHER = ("clients.wait_for=2", "lr=0.5", "local-epochs=4")


def table(path: Path, seed: int) -> Path:
    """Patients of whom those with much glucose are sick."""
    rows = np.random.default_rng(seed).normal(size=(200, len(COLUMNS)))
    lines = [",".join([*(f"{value:.4f}" for value in row), str(int(row[2] > 0))]) for row in rows]
    path.write_text("\n".join([",".join([*COLUMNS, "sick"]), *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("template")
    tables = {name: table(folder / f"{name}.csv", seed) for seed, name in enumerate(SITES)}
    with Federation(folder) as made:
        made.join_all(SITES, lambda name: {"default": ("--path", tables[name], "--label", "sick")})
        yield made


def test_it_learns_from_the_sites_own_patients(federation: Federation, tmp_path: Path) -> None:
    app = tmp_path / "heart"
    federation.ask("init", app, "--template", "flower")
    run = federation.submit(app, *TOGETHER, "num-server-rounds=4")
    events = federation.watch(run)
    assert events.wait(PATIENCE).code == 0, events.said()
    record = federation.record(run)
    assert [row.answered for row in record.rounds] == [SITES] * 8
    assert record.rounds[-1].weight == 100
    assert record.rounds[-1].metrics["accuracy"] > 0.8
    federation.manage("run", "export", run, "--out", tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors")["layers.0.weight"].shape == (16, len(COLUMNS))
