"""Metrics that were computed already, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "fedscale_"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class _Snapshot(Collector):
    """A list of metrics."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        return iter(self._metrics)


def exposed(metrics: Iterable[Metric]) -> bytes:
    """Metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(list(metrics)))
    return generate_latest(registry)


def family(kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    """One metric; ``values`` by the tuple of its labels."""
    made = kind(f"{PREFIX}{name}", f"{text}.", labels=labels)
    for key, value in values.items():
        made.add_metric(key, value)
    return made
