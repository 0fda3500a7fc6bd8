"""The experiment on privacy at four hospitals, in small."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def compare(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = root / "simulations/experiments/privacy/compare.py"
    spec = importlib.util.spec_from_file_location("privacy_experiment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "privacy_experiment", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.requires("sklearn", "torch")
def test_noise_in_shares_costs_little(compare: ModuleType, tmp_path: Path) -> None:
    plain, shared, alone = compare.WAYS
    for way in (plain, shared):
        way.found[compare.PROMISED] = [compare.auc(way, compare.PROMISED, 0)]
        assert way.found[compare.PROMISED][0] > 0.97
    alone.found[compare.PROMISED] = [0.9]
    compare.write_page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "noise in shares" in page


@pytest.mark.requires("sklearn")
def test_four_hospitals_share_no_patient(compare: ModuleType) -> None:
    data, apart = compare.hospitals(3)
    assert len(data) == 4
    assert sum(map(len, data.values())) + len(apart) == 569
    assert [round(len(part) / 427, 1) for part in data.values()] == [0.4, 0.3, 0.2, 0.1]
    everybody = np.concatenate([part.x for part in (*data.values(), apart)])
    assert len(np.unique(everybody, axis=0)) == 569


def test_the_auc_counts_pairs(compare: ModuleType) -> None:
    assert compare.ranked(np.array([3.0, 1.0, 2.0, 2.0]), np.array([1, 0, 1, 0])) == 0.875
