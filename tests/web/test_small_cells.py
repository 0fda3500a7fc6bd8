"""One site with few examples: what it answers is what all answer, and is nowhere to be read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedscale import report
from fedscale.identity import Role
from fedscale.learner import Result, Work
from fedscale.record import RunRecord
from tests.server.running import Counting, plan_text
from tests.web.conftest import Front

EXAMPLES = 10
LOSS = 0.71875  # of a single example, exact in the fixed point of the wire
TOLD = ("0.71875", "0.719", "0.7188")


class Small(Counting):
    """Ten examples, and a loss that is met nowhere else."""

    def run(self, work: Work) -> Result:
        done = super().run(work)
        return Result(arrays=done.arrays, examples=EXAMPLES, metrics={"loss": np.array([LOSS * EXAMPLES])})


async def over(front: Front, **tables: Any) -> tuple[str, RunRecord]:
    """A run of that one site to its end."""
    ada = await front.running.node("ada")
    run = await front.running.submit(plan_text(rounds=2, every=1, **tables))
    ada.work(Small())
    _, record = await front.running.over(run)
    return run, RunRecord.from_json(json.dumps(record))


@pytest.mark.parametrize(("cell", "shown"), [(EXAMPLES, True), (EXAMPLES + 1, False)])
async def test_the_metrics_of_one_small_site_are_nowhere_to_be_read(start: Callable[..., Any], cell: int, shown: bool) -> None:
    front: Front = await start(sinks=("csv",))
    run, record = await over(front, evaluate={"min_cell": cell})
    assert front.running.engine.curves is not None
    await asyncio.to_thread(front.running.engine.curves.close)
    guest = await front.person(Role.COORDINATOR)
    texts = {path: (await guest.http.get(path)).text for path in (f"/runs/{run}", "/models", f"/runs/{run}/card")}
    for name in ("record", "card", "report"):
        texts[name] = (await guest.http.get(f"/api/runs/{run}/{name}")).text
    texts["journal"] = "\n".join(event.detail for event in await front.running.events(run))
    texts["sink"] = "\n".join(path.read_text() for path in (front.running.path / "curves").rglob("*.csv"))
    texts |= {name: path.read_text() for name, path in report.write(record, front.running.path / "out").items()}
    assert {name for name, text in texts.items() if any(word in text for word in TOLD)} == (set(texts) if shown else set())
    assert {row.weight for row in record.rounds} == ({float(EXAMPLES)} if shown else {0.0}), "their number is a small cell as well"
    for path in ("/", "/runs", "/metrics", "/privacy"):
        text = (await guest.http.get(path)).text
        assert not any(word in text for word in TOLD), path
    assert f"stands for at least {cell} examples" in texts[f"/runs/{run}"]
    assert record.rounds[-1].answered == ("ada",)
