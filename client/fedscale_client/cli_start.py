"""``fedscale node start``: a site at work, and its log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from fedscale.cli.lazy import later
from fedscale.cli.logs import LogFormat, configure
from fedscale.heap import share_one_heap
from fedscale_client.chronicle import Chronicle
from fedscale_client.facts import closing, exposed
from fedscale_client.options import HOME, HomeFolder, opened

WORRYING = frozenset({"disconnected", "declined", "failed", "not renewed", "datasets not read", "ledger rolled back"})


def start(*, home: HomeFolder = HOME, log: LogFormat = "text") -> None:
    """Take part until told to stop."""
    configure(log)
    joined = opened(home)
    chronicle = Chronicle(joined, lambda: datetime.now(UTC))

    def happened(facts: Mapping[str, Any]) -> None:
        _log(facts)
        try:
            chronicle.take(facts)
        except OSError as error:  # it proves nothing: not worth an answer, and the full disk is told of elsewhere
            structlog.get_logger().warning("chronicle not written", why=error.strerror)

    for name, problem in exposed(joined).items():
        if problem:
            structlog.get_logger().warning(f"{name} of this site are open", problem=problem, hint=closing(joined))
    share_one_heap()
    asyncio.run(later("fedscale_client.node:run")(joined, on_event=happened))


def _log(facts: Mapping[str, Any]) -> None:
    """One line of the log for something that happened; signs of progress are for the coordinator."""
    told = {name: value for name, value in facts.items() if name != "plan_toml"}
    event = str(told.pop("event"))
    told |= {name: str(value) for name, value in told.pop("failure", {}).items() if value}
    logger = structlog.get_logger()
    if event != "progress":
        (logger.warning if event in WORRYING else logger.info)(event, **told)
