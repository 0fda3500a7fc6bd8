"""What people and programs see: results on stdout, everything else on stderr, one JSON envelope where it is asked for.

Off a terminal nothing is coloured, wrapped, animated or asked. ``NO_COLOR`` and ``TERM=dumb`` are honoured.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from fedscale.errors import FedscaleError

JSON: TypeAlias = Any

BUG, INTERRUPTED = 70, 130
WIDE = 10_000


def screen(*, stderr: bool = False) -> Console:
    """A console for results or, with ``stderr``, for everything else; off a terminal its lines are as long as they need to be."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.file.isatty():
        console.width = WIDE
    return console


@contextmanager
def results_only() -> Iterator[None]:
    """Keep stdout for the result: what foreign code prints meanwhile, in this process or in one that it starts, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def forgive_encoding() -> None:
    """Print what the terminal's encoding lacks as an escape, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def animated() -> bool:
    """Whether somebody looks at stderr, so that it may be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def clean(value: object) -> str:
    """A text that may come from another machine, without characters that steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def text(value: object, style: str = "") -> Text:
    """A cleaned text in a style."""
    return Text(clean(value), style=style)


def closest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known word most like this one, else the list of what is known."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names) or 'none'}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table for a person; a column whose name begins with ``>`` is aligned to the right. Where it is too wide, words break; none is cut off."""
    drawn = Table(box=SIMPLE, pad_edge=False)
    for name in columns:
        drawn.add_column(text(name.removeprefix(">")), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(text, row))
    return drawn


def facts(pairs: Mapping[str, object]) -> Table:
    """Names and values, one a line, in words: yes and no, lists with commas, ``none`` for what is not there."""
    drawn = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        drawn.add_row(text(name, "bold"), text(worded(value)))
    return drawn


def worded(value: object) -> object:
    """A value as a person says it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, list | tuple):
        return ", ".join(map(str, value or ())) or "none"
    return value


def emit(data: JSON, shown: RenderableType, *, as_json: bool) -> None:
    """Print a command's result: the envelope with ``data``, or what a person wants to see."""
    if as_json:
        _envelope({"ok": True, "data": data})
    elif isinstance(shown, str):
        # A ticket or a path is one word however narrow the terminal.
        screen().print(text(shown), soft_wrap=True)
    else:
        screen().print(shown)


def note(told: str) -> None:
    """Print one line about what is going on to stderr."""
    screen(stderr=True).print(text(told), soft_wrap=True)


def line(data: JSON) -> None:
    """Print one line of a ``--jsonl`` stream."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def refuse(error: FedscaleError, *, as_json: bool, data: JSON = None) -> int:
    """Print what, where, why and the next step of an error; returns the exit code that goes with it.

    Args:
        error: why the command failed.
        as_json: print the envelope instead, on stdout.
        data: the result, for a command that has one although it failed.
    """
    if as_json:
        told = {"type": type(error).__name__, "what": error.what, "where": error.where, "why": error.why, "hint": error.hint}
        if _arrived({"ok": False, "error": {**told, "exit_code": error.exit_code}} | ({} if data is None else {"data": data})):
            return error.exit_code
    console = screen(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), clean(error.what)), soft_wrap=True)
    for name, part in {"where": error.where, "why": error.why, "next": error.hint}.items():
        if part:
            console.print(Text.assemble((f"  {name:<6}", "bold"), clean(part).replace("\n", "\n        ")), soft_wrap=True)
    return error.exit_code


def crash(error: BaseException, *, as_json: bool) -> int:
    """Report a mistake of ours: keep the traceback in a file and say where; returns exit code 70."""
    kept = _keep("".join(traceback.format_exception(error)))
    what, why, hint = f"fedscale failed unexpectedly: {type(error).__name__}", "this is a bug in fedscale", f"report it with the file {kept}"
    return refuse(FedscaleError(what, why=why, hint=hint), as_json=as_json)


def interrupted(hint: str, *, as_json: bool) -> int:
    """Say that somebody pressed Ctrl-C and how to go on; returns exit code 130."""
    if as_json:
        told = {"type": "Interrupted", "what": "interrupted", "where": "", "why": "", "hint": hint, "exit_code": INTERRUPTED}
        if _arrived({"ok": False, "error": told}):
            return INTERRUPTED
    note(f"interrupted; {hint}" if hint else "interrupted")
    return INTERRUPTED


def _envelope(content: Mapping[str, JSON]) -> None:
    sys.stdout.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def _arrived(content: Mapping[str, JSON]) -> bool:
    """Print an error's envelope; false where stdout itself is what fails, a full disk or a reader who has left."""
    try:
        _envelope(content)
    except OSError:
        return False
    return True


def _keep(trace: str) -> Path:
    """Write a traceback where its owner alone can read it."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "fedscale"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(".txt", "crash-", folder)
    except OSError:
        handle, name = tempfile.mkstemp(".txt", "fedscale-crash-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(trace)
    return Path(name)
