"""AUC of four hospitals without privacy, with noise in shares over all of them, and with DP-SGD at each: the same promise, record by record.

    python simulations/experiments/privacy/compare.py [--seeds 10] [--json]

Each private way has the settings that were best for it at epsilon 4 on four other seeds, out of some thirty; what choosing costs in privacy
is not counted, for any of them. Leaves ``comparison.html``, the curves over epsilon, beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

import fedscale as fs
from fedscale import App
from fedscale.data import Dataset, Population, from_arrays
from fedscale.errors import RunFailed
from fedscale.report import figures, page
from fedscale.report.svg import line_chart

HERE = Path(__file__).parent
DELTA, CLIP = 1e-5, 1.0
PROMISED = 4.0
EPSILONS = (1.0, 2.0, PROMISED, 8.0)
FIRST_SEED = 0
SHARES = (0.4, 0.3, 0.2, 0.1)
HELD_OUT = 0.25
# The smallest and the largest value of each measurement, as the data set's own description gives them: public, and the same for all.
LEAST = (6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05, 0.112, 0.36, 0.757, 6.802, 0.002, 0.002, 0.0, 0.0, 0.008, 0.001,
         7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055)  # fmt: skip
MOST = (28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097, 2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.03,
        36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How the hospitals learn, and how it is drawn."""

    name: str
    mechanism: str
    rounds: int
    train: Mapping[str, Any]
    style: str
    found: dict[float, list[float]] = field(default_factory=dict)


WAYS = (
    Way("no privacy", "", 30, {"optimizer": {"lr": 2.0}}, "pooled"),
    Way("noise in shares", "union", 40, {"batch_size": 107, "optimizer": {"lr": 10.0}}, "c0 d1"),
    Way("noise at each hospital", "dpsgd", 40, {"batch_size": 64, "optimizer": {"lr": 1.0}}, "c1 d2"),
)


def scaled(data: Dataset) -> Dataset:
    """Measurements within their public range, so that no patient has a say in how another's are scaled."""
    least, most = np.array(LEAST, np.float32), np.array(MOST, np.float32)
    return replace(data, x=4 * (data.x - least) / (most - least) - 1)


APP = App(model=lambda: torch.nn.Linear(30, 1), loss=torch.nn.functional.binary_cross_entropy_with_logits, prepare=scaled)


def hospitals(seed: int) -> tuple[Population, Dataset]:
    """The hospitals' patients, and those that are kept apart to see what was learnt."""
    x, y = load_breast_cancer(return_X_y=True)
    kept, apart = from_arrays(x, y).split(HELD_OUT, seed)
    order = np.random.default_rng(seed).permutation(len(kept))
    ends = np.cumsum([round(share * len(kept)) for share in SHARES[:-1]])
    parts = np.split(order, ends)
    return Population.of({f"hospital-{name}": kept.take(rows) for name, rows in zip("abcd", parts, strict=True)}), apart


def auc(way: Way, epsilon: float, seed: int) -> float:
    """The AUC on patients that no hospital has, after one run."""
    data, apart = hospitals(seed)
    hidden: dict[str, Any] = {}
    if way.mechanism:
        hidden = {"privacy": fs.DP(epsilon=epsilon, delta=DELTA, clip=CLIP, mechanism=way.mechanism), "secagg": "exact"}
    quiet: dict[str, Any] = {"evaluate": {"every": 0, "holdout": 0.0}, "aggregate": {"bound": 64.0}, "engine": "sequential"}
    run = fs.simulate(APP, data, rounds=way.rounds, seed=seed, train=way.train, **quiet, **hidden)
    if run.status != "completed":
        raise RunFailed(f"a run of '{way.name}' {run.status}", why=run.record.reason)
    return ranked(scaled(apart).x @ run.model["weight"].reshape(-1), apart.y)


def ranked(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """How often a patient with the disease scores above one without; half where they tie."""
    above = scores[labels == 1][:, None] - scores[labels == 0]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def write_page(path: Path) -> None:
    """The curves over epsilon."""
    lines = [figures.line_of(way.name, [(epsilon, fmean(values)) for epsilon, values in way.found.items()], way.style) for way in WAYS]
    chart = line_chart(lines, "AUC by epsilon", over="epsilon")
    title = "Privacy of records: noise in shares beside noise at each hospital"
    path.write_text(page.document(title, page.section(title, chart, figures.legend(lines))), encoding="utf-8")


def main() -> None:
    """Run all, print the means, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many runs of each")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    for way in WAYS:
        for epsilon in EPSILONS:
            again = not way.mechanism and way.found
            seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
            way.found[epsilon] = way.found[EPSILONS[0]] if again else [auc(way, epsilon, seed) for seed in seeds]
    write_page(HERE / "comparison.html")
    if options.json:
        print(json.dumps({way.name: {str(epsilon): fmean(values) for epsilon, values in way.found.items()} for way in WAYS}))
        return
    print(f"{'AUC, mean and deviation':<26}" + "".join(f"{f'epsilon {epsilon:g}':>18}" for epsilon in EPSILONS))
    for way in WAYS:
        cells = (f"{fmean(values):.4f} ± {stdev(values) if len(values) > 1 else 0.0:.4f}" for values in way.found.values())
        print(f"{way.name:<26}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
