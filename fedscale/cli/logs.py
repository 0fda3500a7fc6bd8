"""Where the log of a long-running process goes: stderr, one event a line."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, TypeAlias

import typer

from fedscale import console

LogFormat: TypeAlias = Annotated[Literal["text", "json"], typer.Option("--log", help="How the log on stderr is written.")]


def configure(form: Literal["text", "json"]) -> None:
    """Send the log to stderr, for people or as one JSON object a line; times in UTC."""
    import structlog

    render: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if form == "text":
        render = structlog.dev.ConsoleRenderer(colors=console.animated(), exception_formatter=structlog.dev.plain_traceback)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([structlog.processors.format_exc_info] if form == "json" else []),
    ]
    structlog.configure(processors=[*shared, render], logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=False)
