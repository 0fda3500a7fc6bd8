"""``fedscale node start``: a site at work, and its log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from fedscale.cli.lazy import later
from fedscale.cli.logs import LogFormat, configure
from fedscale_client.options import HOME, HomeFolder, opened

WORRYING = frozenset({"disconnected", "failed", "not renewed", "datasets not read"})


def start(*, home: HomeFolder = HOME, log: LogFormat = "text") -> None:
    """Take part until told to stop."""
    configure(log)
    joined = opened(home)
    asyncio.run(later("fedscale_client.node:run")(joined, on_event=_log))


def _log(facts: Mapping[str, Any]) -> None:
    """One line of the log for something that happened; signs of progress are for the coordinator."""
    told = dict(facts)
    event = str(told.pop("event"))
    told |= {name: str(value) for name, value in told.pop("failure", {}).items() if value}
    logger = structlog.get_logger()
    if event != "progress":
        (logger.warning if event in WORRYING else logger.info)(event, **told)
