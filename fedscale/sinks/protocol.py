"""The protocol of sinks, and what all of them tell of a round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fedscale.record import RoundRecord, RunRecord


class Sink(Protocol):
    """One place that takes the curves of one run."""

    def take(self, row: RoundRecord) -> None:
        """A phase of a round has closed."""

    def close(self, record: RunRecord) -> None:
        """The run is over."""


def values(row: RoundRecord) -> Iterator[tuple[str, str, float]]:
    """Site (empty for all of them together), name and value of all numbers of a row."""
    for name, value in row.metrics.items():
        yield "", name, value
    for site, metrics in row.sites.items():
        for name, value in metrics.items():
            yield site, name, value
    facts = {
        "answered": len(row.answered),
        "failed": len(row.failures),
        "seconds": row.seconds,
        "bytes_up": row.bytes_up,
        "bytes_down": row.bytes_down,
    }
    for name, number in facts.items():
        yield "", name, float(number)
