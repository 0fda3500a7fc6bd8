"""``fedscale sweep``: a job's settings searched by simulation."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import Json, Settings
from fedscale.progress import Bar
from fedscale.report.units import duration, number
from fedscale_simulations.sweep.space import Search

REASON_LETTERS = 160

if TYPE_CHECKING:
    from fedscale_simulations.sweep.study import Hunt, Tried


def sweep(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The job file; its table sweep says what is searched.")],
    *,
    trials: Annotated[int, typer.Option(min=1, help="How many trials in all; those of an earlier call count.")] = 30,
    workers: Annotated[int | None, typer.Option(min=1, help="How many at a time; one for each processor by default.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="How many virtual clients.")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Where the sweep lies; runs/JOB-NAME-sweep by default.")] = None,
    json: Json = False,
) -> None:
    """Search the settings of a job by simulation."""
    search = Search(job, tuple(settings or ()))
    folder = out or Path("runs", f"{search.plan.job.name}-sweep")
    hunt: Hunt = later("fedscale_simulations.sweep.study:Hunt")(search, folder, clients)
    with Bar("sweep") as bar:
        done = len(hunt.tried)

        def tell(tried: Tried) -> None:
            nonlocal done
            done += 1
            bar.note(_line(tried, search.monitor), "" if tried.value is not None else "red")
            bar.update(done / trials, f"{done} of {trials} trials", time.monotonic())

        try:
            hunt.run(trials, workers or len(os.sched_getaffinity(0)), tell)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on where it stopped") from None
    best, target = hunt.best, job.with_suffix(".best.toml")
    hunt.write_best(target)
    data = {"monitor": search.monitor, "best": asdict(best), "job": str(target), "folder": str(folder), "trials": [asdict(t) for t in hunt.tried]}
    console.emit(data, Group(_table(hunt.tried, best, search), f"the best job: {target}"), as_json=json)


def _line(tried: Tried, monitor: str) -> str:
    """A trial in one line."""
    ended = f"{monitor} {number(tried.value)}" if tried.value is not None else f"failed: {shorten(tried.reason, REASON_LETTERS)}"
    return f"trial {tried.number:<4}{ended}  {', '.join(f'{name}={value}' for name, value in tried.settings.items())}"


def _table(tried: Sequence[Tried], best: Tried, search: Search) -> Table:
    """All trials, the best one marked."""
    rows = [
        (
            f"{trial.number} \N{BLACK STAR}" if trial.number == best.number else trial.number,
            *(_short(trial.settings.get(name)) for name in search.sweep.space),
            number(trial.value) if trial.value is not None else "failed",
            duration(trial.seconds),
        )
        for trial in tried
    ]
    return console.table((">trial", *(f">{name}" for name in search.sweep.space), f">{search.monitor}", ">time"), rows)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
