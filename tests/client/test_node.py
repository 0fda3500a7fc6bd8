"""The node as a whole: real workers, a real coordinator's protocol, everything over mTLS."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedscale.learner import Phase
from fedscale.vector import Schema
from tests.client.conftest import LEARNER, ROWS, Start
from tests.client.coordinator import MODEL, Coordinator, plan_text, until


async def test_all_phases_of_a_run(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start() as node:
        session = await coordinator.connected()
        assert list(session.hello.datasets) == ["heart"]
        key, _ = coordinator.assign(app, Phase.INIT, 0)
        first = await coordinator.answer(key)
        assert np.frombuffer(first, "<f4").tolist() == [0, 0, 0, 1]
        assert Schema.from_json(coordinator.answers[0][2]).tensors[1].name == "b"

        key, layout = coordinator.assign(app, Phase.TRAIN, 1)
        words = await coordinator.words(key, layout)
        weight, sums = layout.tail(words)
        assert weight == ROWS * 0.8
        assert layout.mean(words, weight).tolist() == [0.5] * 4
        assert sums["loss"].tolist() == [weight]

        key, layout = coordinator.assign(app, Phase.EVALUATE, 1, plan=plan_text(evaluate={"metrics": ["accuracy"]}))
        weight, sums = layout.tail(await coordinator.words(key, layout))
        assert (weight, sums["accuracy"].tolist()) == (ROWS * 0.2, [ROWS * 0.2])
        await until(lambda: len(node.events("answered")) == 3)
        assert {event["verdict"] for event in node.events("answered")} == {"accepted"}
        assert coordinator.fetches.count((app, 0)) == 1
        assert list((tmp_path / "node/cache/answers").iterdir()) == []
