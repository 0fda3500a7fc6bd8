"""``/metrics``: the state of the coordinator in the text format of Prometheus; no names of sites, no values of anybody's data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

import fedscale
from fedscale.web.metrics import exposed, family

if TYPE_CHECKING:
    from fedscale_server.answers import Status
    from fedscale_server.engine import Engine


def exposition(engine: Engine, status: Status) -> bytes:
    """All metrics as they are now.

    Args:
        engine: the runs, and what has been counted.
        status: the server at a glance.
    """
    return exposed([*_gauges(engine, status), *_counters(engine)])


def _gauges(engine: Engine, status: Status) -> Iterator[Metric]:
    """How things stand."""
    members = [site for site in status.nodes if not site.revoked]
    yield family(GaugeMetricFamily, "info", "Release and federation", ("version", "federation"), {(fedscale.__version__, status.federation): 1})
    yield family(
        GaugeMetricFamily, "nodes_connected", "Sites that are connected", ("project",), _by_project(s.project for s in members if s.connected)
    )
    yield family(GaugeMetricFamily, "nodes_known", "Sites that may connect", ("project",), _by_project(site.project for site in members))
    yield family(GaugeMetricFamily, "runs", "Runs that go on", ("status",), Counter((info.status,) for info in status.runs))
    names = ("run", "project")
    yield family(GaugeMetricFamily, "run_round", "Round of a run", names, {(i.run, i.project): i.number for i in status.runs})
    yield family(GaugeMetricFamily, "run_rounds", "Rounds that a run's plan asks for", names, {(i.run, i.project): i.rounds for i in status.runs})
    waiting = {("nodes",): sum(s.outbox.qsize() for s in engine.sessions.every()), ("watchers",): sum(d.feed.waiting for d in engine.drivers())}
    yield family(GaugeMetricFamily, "queue_depth", "Messages that wait to be sent", ("to",), waiting)
    yield family(GaugeMetricFamily, "phase", "Runs in each phase", ("phase",), Counter((info.phase,) for info in status.runs))


def _counters(engine: Engine) -> Iterator[Metric]:
    """What has happened since the start."""
    tally = engine.tally
    phases = {"rounds": ("Closed phases of rounds", tally.rounds), "answers": ("Answers that were counted", tally.answers)}
    for name, (text, values) in phases.items():
        yield family(CounterMetricFamily, name, text, ("phase",), _keyed(values))
    yield family(CounterMetricFamily, "round_seconds", "Seconds that closed phases took", ("phase",), _keyed(tally.seconds))
    yield family(CounterMetricFamily, "failures", "Nodes that did not contribute to a phase", ("cause",), _keyed(tally.failures))
    yield family(CounterMetricFamily, "connections_lost", "Connections that broke in a round", (), {(): tally.lost})
    yield family(CounterMetricFamily, "runs_ended", "Runs that are over", ("status",), _keyed(tally.ended))
    moved = {("up",): tally.bytes_up, ("down",): tally.bytes_down}
    if curves := engine.curves:
        names = ("sink",)
        dropped, failed = ({(sink,): counts[sink] for sink in curves.sinks} for counts in (curves.dropped, curves.failed))
        yield family(CounterMetricFamily, "curves_dropped", "Phases of rounds that a sink of curves was too slow for", names, dropped)
        yield family(CounterMetricFamily, "curves_failed", "Runs that a sink of curves gets no more of", names, failed)
    yield family(CounterMetricFamily, "bytes", "Bytes moved in closed phases, up is from the nodes", ("direction",), moved)


def _keyed(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(key,): value for key, value in values.items()}


def _by_project(projects: Iterator[str]) -> Counter[tuple[str, ...]]:
    return Counter((project,) for project in projects)
