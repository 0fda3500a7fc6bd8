"""Privacy in a real federation: a coordinator and three nodes, mutual TLS, ledgers and secure aggregation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedscale.plan import Plan
from tests.e2e.federation import Federation

APP = """
import torch
from fedscale import App
app = App(model=lambda: torch.nn.Linear(2, 1), loss=torch.nn.functional.binary_cross_entropy_with_logits)
"""
SITES = ("ada", "ben", "cyd")
MASKED = {"secagg": {"enabled": True}}
NODE = {"epsilon": 30.0, "delta": 1e-5, "unit": "node"}


def job(folder: Path, tables: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    whole = {
        "job": {"name": folder.name, "data": "rows"},
        "strategy": {"rounds": 2},
        "clients": {"min_per_round": 3, "wait_for": 3},
        "evaluate": {"every": 0},
    }
    (folder / "job.toml").write_text(Plan.model_validate(whole | tables).to_toml())
    return folder / "job.toml"


def spent_by(accounts: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Epsilon of each account of each site."""
    return {site: [account["epsilon"] for account in those] for site, those in accounts.items()}


@pytest.mark.requires("torch")
@pytest.mark.timeout(600)
def test_records_are_hidden_and_paid_for_at_the_nodes(tmp_path: Path) -> None:
    rows = "".join(f"{at * 7 % 11},{at * 3 % 5},{at % 2}\n" for at in range(60))
    ways: dict[str, dict[str, Any]] = {
        "dpsgd": {"privacy": {"epsilon": 3.0, "delta": 1e-5}},
        "union": {"privacy": {"epsilon": 3.0, "delta": 1e-5}, **MASKED},
        "moving": {"privacy": {**NODE, "clip_quantile": 0.5}, **MASKED},
        "trees": {"privacy": {**NODE, "mechanism": "ftrl"}, "clients": {"select": 1, "wait_for": 3}},
    }
    with Federation(tmp_path) as federation:
        for site in SITES:
            table = tmp_path / f"{site}.csv"
            table.write_text("a,b,y\n" + rows)
            federation.join(site, {"rows": ("--path", table, "--label", "y")})
        records = {name: federation.finished(federation.submit(job(tmp_path / name, tables))) for name, tables in ways.items()}
        accounts = {site: federation.ask("privacy", "spent", "--home", federation.node_home(site))["accounts"] for site in SITES}
        stated = federation.ask("privacy", "statement", records["moving"].run, "--home", federation.node_home("ada"))
        federation.ask("node", "policy", "set", "datasets.rows.epsilon=6", 'datasets.rows.units=["record"]', "--home", federation.node_home("ada"))
        refused = federation.finished(federation.submit(job(tmp_path / "beyond", {"privacy": {"epsilon": 4.0, "delta": 1e-5}})))
        after = {site: federation.ask("privacy", "spent", "--home", federation.node_home(site))["accounts"] for site in SITES}
    assert [record.status for record in records.values()] == ["completed"] * 4, records
    assert len({record.model_digest for record in records.values()}) == 4
    assert (refused.status, refused.rounds) == ("failed", ()), "one round of it would have fitted, and nobody has begun one"
    assert "ada: policy: rows: the run would pass the privacy cap of this site before its end (the cap is epsilon 6 " in refused.reason
    assert spent_by(after) == spent_by(accounts), "neither the site that refuses nor one of the others has spent anything for it"
    moving, trees = records.pop("moving"), records.pop("trees")
    assert all(row.weight == 3 and not row.metrics for record in records.values() for row in record.rounds), "counts and losses stay at the sites"
    assert [set(row.metrics) for row in moving.rounds] == [{"clip"}] * 2
    assert moving.rounds[1].metrics["clip"] != moving.rounds[0].metrics["clip"] == 1.0
    assert stated["epsilon"] == pytest.approx(30.0, rel=1e-3)
    assert {(account["population"], account["unit"]) for account in accounts["ada"]} >= {("rows", "record"), ("rows", "node")}
    assert len({row.answered for row in trees.rounds}) == 2, "a site answers once in a tree"
    paid = {spend["mechanism"] for each in accounts.values() for account in each for spend in account["spends"]}
    assert paid == {"poisson_subsampled_gaussian", "skellam", "tree_aggregation"}
    for record in (moving, trees, *records.values()):
        told = record.extra["privacy"]
        assert isinstance(told, dict)
        assert told["delta"] == 1e-5
        assert told["epsilon"] in (3.0, 30.0)
