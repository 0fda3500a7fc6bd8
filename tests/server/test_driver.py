"""A run and its nodes, through everything that happens between them on the wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from fedscale.proto.v1 import control_pb2 as pb
from tests.server.running import Counting, Node, Receipt, Running, plan_text, until


def kinds(events: list[pb.RunEvent]) -> list[str]:
    return [event.kind for event in events if event.sequence]


async def test_a_run_goes_from_the_first_model_to_its_end(server: Running) -> None:
    nodes = await server.nodes("ada", "ben")
    for node in nodes:
        node.work()
    run = await server.submit(plan_text(rounds=2, every=1, clients={"min_per_round": 2}))
    events = await server.events(run)
    assert [e.sequence for e in events if e.sequence] == list(range(1, len(kinds(events)) + 1))
    one = ["roster", "opened", "answered", "answered", "closed"]
    assert kinds(events) == ["roster", "initialized", *one * 4, "finished"]
    detail, record = await server.detail(run)
    assert (detail.info.status, detail.info.phase, detail.info.number, detail.info.rounds) == ("completed", "evaluate", 2, 2)
    assert record["nodes"] == ["ada", "ben"]
    assert [(r["phase"], r["number"], r["answered"]) for r in record["rounds"]] == [
        (phase, number, ["ada", "ben"]) for number in (1, 2) for phase in ("train", "evaluate")
    ]
    assert (await server.model(run)).tolist() == [2.0] * 4
