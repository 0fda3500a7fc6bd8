"""How long a tiny task takes to a warm node and back: a real coordinator, a real node, its worker, mutual TLS on loopback."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks import Figure
from fedscale.plan import Plan
from tests.e2e.federation import Event, Federation, until

ROUNDS = 200
DEMANDED = 50.0
APP = """
import numpy as np
from fedscale.learner import Result

class Tiny:
    def run(self, work):
        arrays = {"w": np.zeros(4, np.float32)} if work.arrays is None else {"w": work.arrays["w"] + np.float32(0.001)}
        return Result(arrays, len(work.data), {"loss": np.ones(1)})

app = Tiny()
"""


def measure() -> Iterator[Figure]:
    """Times from the coordinator's journal: from the opening of a round to the node's answer, and to the next round."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        federation.join("site", {"tiny": ("--path", _table(Path(folder, "tiny.csv")), "--label", "y")})
        run = federation.submit(_job(Path(folder, "job")))
        # Nobody watches meanwhile: a watcher needs a processor, too.
        until(lambda: federation.nodes["site"].told().count("] answered ") > ROUNDS, "the last answer")
        watching = federation.watch(run)
        assert watching.wait().code == 0
        events = watching.events()
    asked, begun = (next(event["at"] for event in events if event["kind"] == kind) for kind in ("roster", "initialized"))
    yield Figure("first model from a cold node", 1000 * (begun - asked), "ms")
    opened, answered = (_times(events, kind) for kind in ("opened", "answered"))
    for name, times in (("a task there and back", answered[1:] - opened[1:]), ("a whole round", np.diff(opened[1:]))):
        for percent in (50, 95):
            yield Figure(f"{name}, p{percent}", float(np.percentile(times, percent)), "ms", DEMANDED)


def _times(events: list[Event], kind: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """When each round of training was opened, or answered, in milliseconds."""
    found = [event for event in events if event["kind"] == kind and event["phase"] == "train"]
    assert [event["number"] for event in found] == list(range(1, ROUNDS + 1))
    assert all(one["at"] <= other["at"] for one, other in pairwise(found))
    return 1000 * np.array([event["at"] for event in found])


def _table(path: Path) -> Path:
    path.write_text("a,y\n" + "1.5,0\n2.5,1\n" * 10)
    return path


def _job(folder: Path) -> Path:
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    tables = {"job": {"name": "tiny", "data": "tiny"}, "strategy": {"rounds": ROUNDS}, "evaluate": {"every": 0, "holdout": 0.0}}
    (folder / "job.toml").write_text(Plan.model_validate(tables).to_toml())
    return folder / "job.toml"
