"""Metrics: what Prometheus reads is what happened, without a name of any site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from fedscale.identity import Role
from fedscale_server.logbook import Entry
from fedscale_server.tally import Tally
from tests.server.running import Counting
from tests.server.samples import NOW
from tests.web.conftest import Front

Samples = dict[tuple[str, ...], float]


async def scraped(front: Front) -> dict[str, Samples]:
    """Each metric's samples by the values of their labels, which come in the order of the labels' names."""
    guest = await front.person(Role.AUDITOR)
    answer = await guest.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation for family in families)
    return _by_name([sample for family in families for sample in family.samples])


def _by_name(samples: list[Any]) -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    for sample in samples:
        found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def test_metrics_tell_of_nodes_rounds_bytes_and_failures(front: Front) -> None:
    nodes = await front.running.nodes("ada", "ben")
    run, (ask, other) = await front.running.begun(*nodes, rounds=2, clients={"min_per_round": 1, "wait_for": 2})
    nodes[0].fail(ask.key)
    await nodes[1].answer(other, 1.0)
    second = await nodes[0].ask("train")
    found = await scraped(front)
    assert found["fedscale_nodes_connected"] == {("ward",): 2} == found["fedscale_nodes_known"]
    assert found["fedscale_runs"] == {("running",): 1}
    assert (found["fedscale_run_round"], found["fedscale_run_rounds"]) == ({("ward", run): 2}, {("ward", run): 2})
    assert found["fedscale_rounds_total"] == {("train",): 1} == found["fedscale_answers_total"]
    assert found["fedscale_failures_total"] == {("code",): 1}
    assert found["fedscale_bytes_total"][("up",)] > 0
    assert found["fedscale_queue_depth"] == {("nodes",): 0, ("watchers",): 0}
    nodes[1].work(Counting())
    await nodes[0].answer(second)
    await front.running.over(run)
    await nodes[1].leave()
    found = await scraped(front)
    assert found["fedscale_runs_ended_total"] == {("completed",): 1}
    assert "fedscale_runs" not in found
    assert found["fedscale_rounds_total"] == {("train",): 2}
    text = json.dumps(sorted(map(str, found.items())))
    assert "ada" not in text
    assert "ben" not in text


def entry(kind: str, phase: str = "train", **detail: Any) -> Entry:
    return Entry(1, NOW, kind, phase, 1, "", detail)


def test_closed_phases_add_up_and_all_else_is_counted_once() -> None:
    tally = Tally()
    closed: dict[str, Any] = {"seconds": 1.5, "answered": ["ada", "ben"], "failures": {"cleo": {"cause": "lost"}}, "bytes_up": 10, "bytes_down": 20}
    for _ in range(2):
        tally.take(entry("closed", **closed))
    tally.take(entry("closed", "evaluate", **{**closed, "failures": {}}))
    tally.take(entry("failed", cause="lost", what="told when the round closes"))
    tally.take(entry("lost"))
    tally.take(entry("finished", status="stopped", reason=""))
    assert (tally.rounds, tally.answers) == ({"train": 2, "evaluate": 1}, {"train": 4, "evaluate": 2})
    assert (tally.seconds, tally.failures) == ({"train": 3.0, "evaluate": 1.5}, {"lost": 2})
    assert (tally.bytes_up, tally.bytes_down, tally.lost, tally.ended) == (30, 60, 1, {"stopped": 1})


def names_in(value: Any) -> set[str]:
    """Every word that begins like a metric of ours."""
    if isinstance(value, dict):
        return set().union(*map(names_in, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(names_in, value)) if value else set()
    words = str(value).replace("(", " ").replace("{", " ").replace("[", " ").replace(")", " ").replace("}", " ").split()
    return {word for word in words if word.startswith("fedscale_")}


async def test_the_board_and_the_alerts_name_metrics_that_exist(front: Front, root: Path) -> None:
    nodes = await front.running.nodes("ada", "ben")
    _, (ask, other) = await front.running.begun(*nodes, rounds=2, clients={"min_per_round": 1, "wait_for": 2})
    nodes[0].fail(ask.key)
    await nodes[1].answer(other, 1.0)
    await nodes[1].ask("train")
    known = set(await scraped(front))
    board = json.loads((root / "server/grafana/fedscale.json").read_text())
    assert names_in([panel["targets"] for panel in board["panels"]]) <= known
    assert len(board["panels"]) >= 6
    rules = (root / "server/grafana/alerts.yaml").read_text()
    assert names_in(rules) <= known
    assert rules.count("alert:") >= 4
