"""``fedscale simulate``: a job file with virtual clients on this machine."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import Json, Settings
from fedscale.cli.rounds import failure, fraction, round_line
from fedscale.errors import ConfigError, RunFailed
from fedscale.progress import Bar
from fedscale.record import RoundRecord, RunRecord, summary
from fedscale.report.units import number
from fedscale.sinks import Tracker, read, track
from fedscale_simulations.folders import at_work, begun, claimed, interrupted, latest

if TYPE_CHECKING:
    from fedscale.plan import Plan
    from fedscale_simulations.job import Table
    from fedscale_simulations.result import Progress, Simulation

# The option that each way to spread rows has, and how it is written.
SPREADS = {
    "iid": ("", "iid"),
    "dirichlet": ("alpha", "dirichlet:0.5"),
    "shards": ("per_client", "shards:2"),
    "quantity": ("alpha", "quantity:1"),
    "column": ("column", "column:NAME"),
}
FAILURES_SHOWN = 5
# A bar drawn for every client would cost more than a small client's training.
REDRAW_SECONDS = 0.1


def simulate(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The job file; the app is imported from its folder. Or a Flower app's directory.")],
    *,
    clients: Annotated[int | None, typer.Option(min=1, help="How many virtual clients.")] = None,
    settings: Settings = None,
    data: Annotated[Path | None, typer.Option(help="A CSV file to spread over the clients, in place of the app's own population.")] = None,
    label: Annotated[str, typer.Option(help="The column of the CSV file to predict.")] = "",
    columns: Annotated[str, typer.Option(help="Its features in order, separated by commas; by default all other columns.")] = "",
    missing: Annotated[
        Literal["refuse", "drop"] | None, typer.Option(help="What to do with rows that have a missing value; refuse by default.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="How to spread it: iid, dirichlet:0.5, shards:2, quantity:1 or column:NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; runs/JOB-NAME by default, with a number where that is taken.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in that folder, or of the job's last run.")] = False,
    engine: Annotated[str, typer.Option(help="How clients are trained: auto, sequential, vectorized, pool or ray.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="How many processes; one for each processor by default.")] = None,
    json: Json = False,
) -> None:
    """Run a job with virtual clients on this machine."""
    if later("fedscale.flower.directory:is_app")(job):
        own = {"--data": data, "--label": label, "--columns": columns, "--missing": missing, "--partition": partition}
        _refuse_for_flower({**own, "--resume": resume, "--engine": engine not in ("auto", "sequential"), "--workers": (workers or 1) > 1})
        raise typer.Exit(_flower(job, clients, settings or (), out, as_json=json))
    plan: Plan = later("fedscale.plan:Plan").load(job, settings or ())
    given = {"table": _table(data, label, columns, missing, partition), "engine": engine, "workers": workers}
    with _folder(plan, out, resume=resume) as folder:
        with Bar("simulating") as bar, _tracker(job, settings or (), folder, bar, resume=resume) as tracker:
            show, run = Show(bar, tracker), later("fedscale_simulations.simulator:simulate_file")
            try:
                with console.results_only():
                    ended: Simulation = run(job, clients, settings or (), folder, show, resume=folder if resume else None, **given)
                tracker.close(ended.record)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"go on where it stopped: {_again(folder)}" if begun(folder) else "") from None
            except ConfigError as error:
                if begun(folder) and not error.hint:
                    error.hint = f"when that is mended, go on where it stopped: {_again(folder)}"
                raise
        raise typer.Exit(_conclude(ended, folder, as_json=json))


def _folder(plan: Plan, out: Path | None, *, resume: bool) -> AbstractContextManager[Path]:
    """Where a run of that plan goes, or lies where it goes on."""
    last = out or latest(plan.job.name)
    if resume:
        return at_work(last)
    if out is None and interrupted(last) and later("fedscale_simulations.checkpoint:begun_by")(last, plan):
        console.note(f"{last} holds a run that was interrupted; to go on with it: {_again(last)}")
    return claimed(plan.job.name, out)


def _again(folder: Path) -> str:
    """The command that goes on with this simulation: as it was typed, with its folder and ``--resume``."""
    context = click.get_current_context()
    typed = [str(word) for word in context.find_root().obj]
    out = [] if context.params["out"] else ["--out", str(folder)]
    return shlex.join(["fedscale", *typed, *out, *([] if "--resume" in typed else ["--resume"])])


def _flower(job: Path, clients: int | None, settings: Iterable[str], out: Path | None, *, as_json: bool) -> int:
    """Run a Flower app's directory; returns the exit code."""
    directory = later("fedscale.flower.directory:read")(job, settings, clients)
    with claimed(directory.name, out) as folder:
        with Bar("simulating") as bar, console.results_only():
            ended = later("fedscale_simulations.flower:simulate_app")(job, clients, settings, folder, Show(bar))
        return _conclude(ended.plain, folder, as_json=as_json)


def _tracker(job: Path, settings: Iterable[str], folder: Path, bar: Bar, *, resume: bool) -> Tracker:
    """The sinks that a job file asks for; when a simulation goes on, they have its earlier rounds already."""
    tracking, name = read(job, settings), later("fedscale.plan:Plan").load(job, settings).job.name
    before: RunRecord | None = later("fedscale_simulations.checkpoint:recorded")(folder) if resume and tracking.sinks else None
    tracker = track(tracking, folder, name, bar.note)
    if before is not None:
        tracker.catch_up(before)
    return tracker


def _refuse_for_flower(given: Mapping[str, object]) -> None:
    """Refuse options that a Flower app, which brings its own data and loop, cannot have."""
    if refused := [option for option, value in given.items() if value]:
        raise ConfigError(f"{refused[0]} does not go with a Flower app", why="the app brings its own data and leads its own rounds")


class Show:
    """Shows the progress of a simulation.

    Args:
        bar: where.
        tracker: told of every round too.
    """

    def __init__(self, bar: Bar, tracker: Tracker | None = None) -> None:
        self._bar, self.tracker, self.rounds = bar, tracker or Tracker(()), 0
        self._step, self._before, self._loss = ("", 0, 0), 0, ""
        self._began = self._drawn = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Draw how far it is, and a line for each closed round."""
        now = time.monotonic()
        step = (progress.phase, progress.number, progress.done)
        if step[:2] != self._step[:2]:
            self._before += self._step[2]
        self._step = step
        if progress.closed is not None:
            self.rounds += 1
            self._loss = f", loss {number(progress.closed.metrics['loss'])}" if "loss" in progress.closed.metrics else self._loss
            self._tell(progress.closed, progress.rounds)
            self.tracker.take(progress.closed)
        elif now < self._drawn + REDRAW_SECONDS:
            return
        self._drawn = now
        within = progress.done / max(progress.asked, 1)
        rate = (self._before + progress.done) / max(now - self._began, 1e-9)
        text = f"{progress.phase} {progress.number}/{progress.rounds}, {progress.done} of {progress.asked} clients, {rate:.3g} clients/s{self._loss}"
        self._bar.update(fraction(progress.number, progress.rounds, progress.phase, within), text, now)

    def _tell(self, closed: RoundRecord, rounds: int) -> None:
        at, detail = f"{closed.phase} {closed.number}/{rounds}", asdict(closed)
        for node, what in list(detail["failures"].items())[:FAILURES_SHOWN]:
            self._bar.note(f"{at:<15} {node} failed: {failure(what)}", "red")
        if len(closed.failures) > FAILURES_SHOWN:
            self._bar.note(f"{at:<15} and {len(closed.failures) - FAILURES_SHOWN} more failed", "red")
        self._bar.note(round_line(at, detail))


def _table(data: Path | None, label: str, columns: str, missing: str | None, partition: str | None) -> Table | None:
    """The CSV file to spread, where there is one."""
    if data is None:
        about = {"--label": label, "--columns": columns, "--missing": missing, "--partition": partition}
        if given := [option for option, value in about.items() if value]:
            what = f"{given[0]} is given, and no file to spread"
            raise ConfigError(what, why="without --data the app's own population is simulated", hint="name the CSV file with --data")
        return None
    if not label:
        raise ConfigError("a CSV file needs the column to predict", where=str(data), hint="name it with --label")
    kind, options = _spread(partition or "iid")
    names = tuple(name.strip() for name in columns.split(",")) if columns else None
    table: Table = later("fedscale_simulations.job:Table")(data, label, kind, options, names, missing or "refuse")
    return table


def _spread(partition: str) -> tuple[str, dict[str, float | str]]:
    """How to spread rows, and the one option of that kind where it has one."""
    kind, _, value = partition.partition(":")
    if kind not in SPREADS:
        raise ConfigError(f"there is no partition '{kind}'", where="--partition", hint=console.closest(kind, SPREADS))
    option, example = SPREADS[kind]
    if bool(option) != bool(value):
        what = f"'{kind}' needs a value" if option else f"'{kind}' takes no value"
        raise ConfigError(what, where=f"--partition {partition}", hint=f"write --partition {example}")
    return kind, {option: value if kind == "column" else _number(value)} if option else {}


def _number(text: str) -> float | str:
    """A number where the text is one."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def _engine(ended: Simulation) -> str:
    """Which engine did the work and why, as a line of its own."""
    engine = ended.record.extra.get("engine")
    if not isinstance(engine, dict) or "why" not in engine:
        return ""
    return f"{'engine':<10}{engine['form']}, {engine['workers']} process{'' if engine['workers'] == 1 else 'es'}: {engine['why']}\n"


def _conclude(ended: Simulation, folder: Path, *, as_json: bool) -> int:
    """Print the results; returns the exit code."""
    data = summary(ended.record) | {"folder": str(folder), "report": str(folder / "report.html")}
    if ended.status != "completed":
        problem = RunFailed(f"the simulation {ended.status}", why=ended.record.reason, hint=f"see {folder / 'report.html'}")
        return console.refuse(problem, as_json=as_json, data=data)
    console.emit(data, f"{ended.summary()}\n{_engine(ended)}{'report':<10}{folder / 'report.html'}", as_json=as_json)
    return 0
