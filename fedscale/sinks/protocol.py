"""The protocol of sinks, and what all of them tell of a round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from fedscale.errors import ConfigError
from fedscale.record import RoundRecord, RunRecord


class Sink(Protocol):
    """One place that takes the curves of one run; each method raises ``ConfigError`` when it cannot be written."""

    def take(self, row: RoundRecord) -> None:
        """A phase of a round has closed."""

    def close(self, record: RunRecord | None) -> None:
        """The run is over, or nobody follows it any longer and there is no record."""


@contextmanager
def writing(sink: str, *errors: type[Exception]) -> Iterator[None]:
    """Tell in our own words that a sink cannot be written.

    Args:
        sink: its name.
        errors: what its package raises then, besides ``OSError``.

    Raises:
        ConfigError: in place of these.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except kinds as error:
        # What a package says may quote an address with a password: its kind must do.
        where, why = (error.filename, error.strerror) if isinstance(error, OSError) else ("", "")
        raise ConfigError(f"the sink '{sink}' cannot be written", where=str(where or ""), why=why or type(error).__name__) from None


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
