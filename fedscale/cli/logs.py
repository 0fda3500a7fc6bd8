"""Where the log of a long-running process goes: stderr, one event a line."""

from __future__ import annotations

import io
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Annotated, Any, Literal, TextIO, TypeAlias, cast

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
        structlog.processors.format_exc_info if form == "json" else _cleaned,
    ]
    out = cast("TextIO", Unfailing(sys.stderr))
    structlog.configure(processors=[*shared, render], logger_factory=structlog.PrintLoggerFactory(out), cache_logger_on_first_use=False)


def _cleaned(_: object, __: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What is logged, for a terminal: texts may come from other machines."""
    return {name: console.clean(value) if isinstance(value, str) else value for name, value in facts.items()}


class Unfailing(io.TextIOBase):
    """A stream for a log. What cannot be written, on a full disk or a closed stream, is lost, and whoever logs hears nothing of it: of all times,
    a step that copes with a full disk must not be broken off where it says so.

    Args:
        stream: where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str, /) -> int:
        """Write, if possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()
