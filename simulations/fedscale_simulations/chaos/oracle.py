"""The oracle: a learner whose every answer lights a coordinate of its own, and what a model says about who was counted.

In the model that a run leaves, a coordinate that is dark belongs to an answer that was lost, one that is twice as bright
to an answer that was counted twice. The last coordinates are dense: whatever else went wrong shows there in some bit.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedscale.learner import Result, Work
from fedscale.plan import Plan
from fedscale.record import RunRecord
from fedscale.vector import Vector

DATASET, LABEL, PART = "place", "y", "w"
DENSE, ROWS = 5, 3


@dataclass(frozen=True, slots=True)
class OneHot:
    """A learner of numpy alone.

    Args:
        nodes: how many take part; the first column of a node's data is its place among them.
        rounds: how many there are.
        pace: longest time in seconds that an answer takes; each takes another part of it.
    """

    nodes: int
    rounds: int
    pace: float = 0.0

    def run(self, work: Work) -> Result:
        """Light the coordinate of this round and place."""
        if work.arrays is None:
            return Result({PART: np.zeros(self.nodes * self.rounds + DENSE, np.float32)}, 0)
        random = np.random.default_rng(work.seed)
        change = np.zeros(self.nodes * self.rounds + DENSE, np.float32)
        change[(work.number - 1) * self.nodes + int(work.data.x[0, 0])] = 1.0
        change[-DENSE:] = random.normal(size=DENSE)
        time.sleep(self.pace * random.random())
        return Result({PART: work.arrays[PART] + change}, len(work.data.x), {"loss": np.array([float(work.number)])})


@dataclass(frozen=True, slots=True)
class Job:
    """What is run again and again.

    Args:
        nodes: their names, each at its place.
        rounds: of one run.
        seed: of everything random in it.
        pace: as in ``OneHot``.
        quorum: fewest answers a round closes with; everybody's by default.
        rejoin: seconds a lost node has to come back.
        deadline: seconds that a round may take.
    """

    nodes: tuple[str, ...]
    rounds: int
    seed: int = 0
    pace: float = 0.1
    quorum: int | None = None
    rejoin: float = 120.0
    deadline: float = 120.0

    def plan(self) -> Plan:
        """Its plan: all weigh the same, nobody evaluates."""
        clients = {"min_per_round": self.quorum or len(self.nodes), "wait_for": len(self.nodes), "rejoin": self.rejoin, "deadline": self.deadline}
        return Plan.model_validate(
            {
                "job": {"name": "chaos", "data": DATASET, "seed": self.seed},
                "strategy": {"rounds": self.rounds, "weighting": "equal"},
                "clients": clients,
                "evaluate": {"every": 0, "holdout": 0},
            }
        )

    def write(self, folder: Path) -> Path:
        """Write the job into a new folder; returns the job file."""
        folder.mkdir(parents=True)
        learner = f"OneHot(nodes={len(self.nodes)}, rounds={self.rounds}, pace={self.pace})"
        (folder / "app.py").write_text(f"from {__name__} import OneHot\n\napp = {learner}\n", encoding="utf-8")
        (folder / "job.toml").write_text(self.plan().to_toml(), encoding="utf-8")
        return folder / "job.toml"

    def table(self, node: str) -> str:
        """A node's dataset as a CSV file: its place, on a few lines."""
        return "\n".join(["place,y", *[f"{self.nodes.index(node)},{row % 2}" for row in range(ROWS)], ""])


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of the answers of one run.

    Args:
        lost: answers that were accepted and are not in the model.
        doubled: answers that are in it more than once, each time too much.
        stray: coordinates that nobody answered for and that are lit all the same.
    """

    lost: int
    doubled: int
    stray: int


def count(job: Job, record: RunRecord, model: Vector, accepted: Collection[tuple[int, str]] = ()) -> Counted:
    """Compare a model with what the record, and the nodes themselves, say was accepted.

    Args:
        job: what was run.
        record: the record of a run that is over.
        model: its final model, shape ``(nodes * rounds + DENSE,)``.
        accepted: rounds and nodes whose answers the server has told them it accepted.
    """
    answered = {row.number: row.answered for row in record.rounds}
    lost = doubled = stray = 0
    for number in range(1, job.rounds + 1):
        members = set(answered.get(number, ())) | {node for told, node in accepted if told == number}
        for place, node in enumerate(job.nodes):
            bright = float(model[(number - 1) * len(job.nodes) + place])
            times = round(bright * len(answered.get(number, ())))
            lost += node in members and times == 0
            doubled += max(times - 1, 0)
            stray += node not in members and times > 0
    return Counted(lost, doubled, stray)


def dark(model: Mapping[str, Any]) -> Vector:
    """The oracle's part of a model that was read from a file."""
    vector: Vector = np.asarray(model[PART], np.float32)
    return vector
