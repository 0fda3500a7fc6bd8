"""Was federating worth it: models of each site alone, of all data in one place and of the federation, on the same held-out rows."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedscale.data import Dataset
from fedscale.errors import DataError
from fedscale.learner import Learner, Phase, Work
from fedscale.metrics import histogram_auc
from fedscale.plan import Plan
from fedscale.record import JSON
from fedscale.task import portion
from fedscale.vector import Arrays
from fedscale_simulations.simulator import simulate

AUC = "auc"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Areas under the ROC curve, all on the held-out rows of all sites together.

    Args:
        alone: of the model each site could train by itself.
        federated: of the federation's model.
        pooled: of the model trained on all training rows in one place.
        examples: training rows of each site.
    """

    alone: Mapping[str, float]
    federated: float
    pooled: float
    examples: Mapping[str, int]

    @property
    def mean_alone(self) -> float:
        """Mean over the sites."""
        return fmean(self.alone.values())

    def rows(self) -> list[JSON]:
        """As a run's record has it under ``comparison``."""
        total = sum(self.examples.values())
        alone: list[JSON] = [{"kind": "alone", "site": site, "examples": self.examples[site], AUC: value} for site, value in self.alone.items()]
        return [*alone, {"kind": "federated", "examples": total, AUC: self.federated}, {"kind": "pooled", "examples": total, AUC: self.pooled}]


def compare(learner: Learner, plan: Plan, sites: Mapping[str, Dataset], federated: Arrays) -> Comparison:
    """Train what the sites could have had without the federation, with the same plan, and compare.

    Args:
        learner: the app's.
        plan: the federation's; its holdout and seed split the rows as every node did.
        sites: each site's whole dataset.
        federated: the federation's model by tensor name.

    Raises:
        DataError: the held-out rows are all of one class.
        RunFailed: a model cannot be trained.
    """
    splits = {site: (portion(plan, Phase.TRAIN, rows), portion(plan, Phase.EVALUATE, rows)) for site, rows in sites.items()}
    held_out = Dataset.concat([held for _, held in splits.values()])
    # What is left of a site's rows is all for training, nobody is waited for, and there is nobody to hide a sum or a row from.
    alone = ("evaluate.holdout=0.0", "evaluate.every=0", "clients.min_per_round=1", "clients.wait_for=1", "secagg.enabled=false")
    solo = Plan.from_toml(plan.model_copy(update={"privacy": None}).to_toml(), overrides=alone)

    def trained_on(name: str, rows: Dataset) -> float:
        return auc(learner, plan, simulate(learner, {name: rows}, plan=solo).model, held_out)

    return Comparison(
        alone={site: trained_on(site, rows) for site, (rows, _) in splits.items()},
        federated=auc(learner, plan, federated, held_out),
        pooled=trained_on("pooled", Dataset.concat([rows for rows, _ in splits.values()])),
        examples={site: len(rows) for site, (rows, _) in splits.items()},
    )


def auc(learner: Learner, plan: Plan, model: Arrays, rows: Dataset) -> float:
    """Area under the ROC curve of a model on these rows, from the score histograms that a federation would sum.

    Raises:
        DataError: the rows are all of one class.
    """
    work = Work(Phase.EVALUATE, plan.strategy.rounds, plan.job.seed, model, rows, plan.train, ("loss", AUC))
    value = histogram_auc(learner.run(work).metrics[AUC])
    if value is None or not math.isfinite(value):
        raise DataError("the held-out rows are all of one class, so no ROC curve can be drawn")
    return value


def write_csv(path: Path, rows: Dataset, label: str) -> None:
    """A table as a site would keep it; ``from_csv`` reads the very same numbers back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*rows.columns, label))
        for features, outcome in zip(rows.x.tolist(), rows.y.tolist(), strict=True):
            writer.writerow((*map(repr, features), outcome))
