"""``/metrics``: the state of the coordinator in the text format of Prometheus; no names of sites, no values of anybody's data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import fedscale

if TYPE_CHECKING:
    from fedscale_server.answers import Status
    from fedscale_server.engine import Engine

PREFIX = "fedscale_"


def exposition(engine: Engine, status: Status) -> bytes:
    """All metrics as they are now.

    Args:
        engine: the runs, and what has been counted.
        status: the server at a glance.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot([*_gauges(engine, status), *_counters(engine)]))
    return generate_latest(registry)


class _Snapshot(Collector):
    """Metrics that were computed already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        return iter(self._metrics)


def _gauges(engine: Engine, status: Status) -> Iterator[Metric]:
    """How things stand."""
    members = [site for site in status.nodes if not site.revoked]
    yield _family(GaugeMetricFamily, "info", "Release and federation", ("version", "federation"), {(fedscale.__version__, status.federation): 1})
    yield _family(
        GaugeMetricFamily, "nodes_connected", "Sites that are connected", ("project",), _by_project(s.project for s in members if s.connected)
    )
    yield _family(GaugeMetricFamily, "nodes_known", "Sites that may connect", ("project",), _by_project(site.project for site in members))
    yield _family(GaugeMetricFamily, "runs", "Runs that go on", ("status",), Counter((info.status,) for info in status.runs))
    names = ("run", "project")
    yield _family(GaugeMetricFamily, "run_round", "Round of a run", names, {(i.run, i.project): i.number for i in status.runs})
    yield _family(GaugeMetricFamily, "run_rounds", "Rounds that a run's plan asks for", names, {(i.run, i.project): i.rounds for i in status.runs})
    waiting = {("nodes",): sum(s.outbox.qsize() for s in engine.sessions.every()), ("watchers",): sum(d.feed.waiting for d in engine.drivers())}
    yield _family(GaugeMetricFamily, "queue_depth", "Messages that wait to be sent", ("to",), waiting)
    yield _family(GaugeMetricFamily, "phase", "Runs in each phase", ("phase",), Counter((info.phase,) for info in status.runs))


def _counters(engine: Engine) -> Iterator[Metric]:
    """What has happened since the start."""
    tally = engine.tally
    phases = {"rounds": ("Closed phases of rounds", tally.rounds), "answers": ("Answers that were counted", tally.answers)}
    for name, (text, values) in phases.items():
        yield _family(CounterMetricFamily, name, text, ("phase",), _keyed(values))
    yield _family(CounterMetricFamily, "round_seconds", "Seconds that closed phases took", ("phase",), _keyed(tally.seconds))
    yield _family(CounterMetricFamily, "failures", "Nodes that did not contribute to a phase", ("cause",), _keyed(tally.failures))
    yield _family(CounterMetricFamily, "connections_lost", "Connections that broke in a round", (), {(): tally.lost})
    yield _family(CounterMetricFamily, "runs_ended", "Runs that are over", ("status",), _keyed(tally.ended))
    moved = {("up",): tally.bytes_up, ("down",): tally.bytes_down}
    yield _family(CounterMetricFamily, "bytes", "Bytes moved in closed phases, up is from the nodes", ("direction",), moved)


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]
) -> Metric:
    """One metric; ``values`` by the tuple of its labels."""
    family = kind(f"{PREFIX}{name}", f"{text}.", labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _keyed(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(key,): value for key, value in values.items()}


def _by_project(projects: Iterator[str]) -> Counter[tuple[str, ...]]:
    return Counter((project,) for project in projects)
