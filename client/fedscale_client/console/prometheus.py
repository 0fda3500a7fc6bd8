"""``/metrics`` of a node: how it does, what left it and what that cost; no value of anybody's data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

import fedscale
from fedscale.web.metrics import exposed, family
from fedscale_client.console.desk import Desk


def exposition(desk: Desk) -> bytes:
    """All metrics as they are now."""
    return exposed([*_gauges(desk), *_counters(desk)])


def _gauges(desk: Desk) -> Iterator[Metric]:
    """How things stand."""
    status = desk.status()
    names = ("version", "federation", "project", "site")
    yield family(GaugeMetricFamily, "node_info", "Release and place of this node", names, {(fedscale.__version__, *_place(status)): 1})
    states = {"running": status["running"], "connected": status["connected"] is not None, "paused": status["paused"]}
    for name, state in states.items():
        yield family(GaugeMetricFamily, f"node_{name}", f"Whether the node is {name}", (), {(): int(state)})
    yield family(GaugeMetricFamily, "node_datasets", "Datasets that are offered", (), {(): len(status["datasets"])})
    accounts = desk.accounts()
    labels = ("population", "unit")
    spent = {(a.population, a.unit): a.epsilon for a in accounts}
    yield family(GaugeMetricFamily, "node_epsilon", "Epsilon that was spent", labels, spent)
    caps = {(a.population, a.unit): a.cap.epsilon for a in accounts if a.cap}
    yield family(GaugeMetricFamily, "node_epsilon_cap", "The most that may be spent", labels, caps)


def _counters(desk: Desk) -> Iterator[Metric]:
    """What has happened, as far as ledger and chronicle go back."""
    receipts = desk.receipts()
    verdicts = Counter((receipt["verdict"] or "unknown",) for receipt in receipts)
    yield family(CounterMetricFamily, "node_answers", "Answers that left, by what became of them", ("verdict",), verdicts)
    yield family(CounterMetricFamily, "node_bytes_left", "Bytes of answers that left", (), {(): sum(receipt["bytes"] for receipt in receipts)})
    yield family(CounterMetricFamily, "node_failures", "Tasks that failed", ("cause",), {(cause,): count for cause, count in desk.failures().items()})
    tasks = Counter[tuple[str]]()
    for one in desk.asked():
        tasks.update({(phase,): count for phase, count in one.tasks.items()})
    yield family(CounterMetricFamily, "node_tasks", "Tasks that were asked", ("phase",), tasks)


def _place(status: dict[str, str]) -> tuple[str, str, str]:
    return status["federation"], status["project"], status["name"]
