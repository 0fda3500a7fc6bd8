"""Following a run at the terminal until it ends."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Group, RenderableType

from fedscale import console
from fedscale.cli.rounds import results, totals
from fedscale.errors import FedscaleError, RunFailed
from fedscale.progress import Bar
from fedscale.record import RunRecord
from fedscale_server.answers import Detail
from fedscale_server.board import Board
from fedscale_server.control import Control
from fedscale_server.view import View


def follow(control: Control, run: str, *, as_json: bool, as_lines: bool, after: int = 0) -> int:
    """Show what happens to a run, from its first event on, until it ends; then its results.

    Args:
        control: the connection.
        run: its id.
        as_json: end with an envelope instead of a table.
        as_lines: print every event as a line of JSON, and nothing else.
        after: sequence number of the last event already seen.

    Returns:
        The exit code: 0 when the run reached its goal, 1 when not.
    """
    view = View(control.run(run).info.rounds)
    board = Board(view)
    try:
        with Bar(run, quiet=as_lines, below=board) as bar:
            for event in control.watch(run, after):
                board.heard(event.at)
                if as_lines:
                    console.line(asdict(event))
                for told in view.take(event):
                    bar.note(told.text, told.style)
                bar.update(view.fraction, view.text, event.at)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the run goes on; watch it again: fedscale run watch {run}") from None
    detail = control.run(run)
    problem = problem_of(detail)
    if as_lines:
        return 0 if problem is None else problem.exit_code
    return conclude(detail, problem, as_json=as_json)


def conclude(detail: Detail, problem: FedscaleError | None, *, as_json: bool) -> int:
    """Print a run's results and, where there is one, the problem it ended with; returns the exit code."""
    data = {"run": asdict(detail.info), "record": json.loads(detail.record)}
    if as_json and problem is not None:
        return console.refuse(problem, as_json=True, data=data)
    console.emit(data, shown(detail), as_json=as_json)
    return 0 if problem is None else console.refuse(problem, as_json=False)


def shown(detail: Detail) -> RenderableType:
    """A run's results as a person reads them."""
    record = RunRecord.from_json(detail.record)
    return Group(results(record), console.text(totals(record)))


def problem_of(detail: Detail) -> FedscaleError | None:
    """Why a run did not reach its goal."""
    info = detail.info
    if info.status in ("completed", "running", "paused"):
        return None
    return RunFailed(f"run {info.run} {info.status}", where=f"project {info.project}", why=info.reason, hint=f"see: fedscale run show {info.run}")
