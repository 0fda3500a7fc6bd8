"""Simulate a plan: the run that a server would drive, with virtual clients in one process.

The run, the rounds, the tasks and the learner are those of a deployment; only the world around them differs. The same
plan, seed, clients and learner give the same model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fedscale.clock import SystemClock
from fedscale.errors import PlanError
from fedscale.events import Assign, Commit, Summed
from fedscale.learner import App, Learner, Training
from fedscale.plan import Aggregate, Clients, Evaluate, Plan
from fedscale.privacy.dp import DP
from fedscale.record import JSON
from fedscale.round import Status
from fedscale.run import RUNNING, Run
from fedscale.strategy import Strategy, fed_avg
from fedscale.torch_learner import as_learner, one_thread
from fedscale_simulations.arguments import Given, described, plan_of, require_kinds
from fedscale_simulations.books import Books
from fedscale_simulations.budgets import statement
from fedscale_simulations.census import Census, weight_cap
from fedscale_simulations.checkpoint import Keeper, load
from fedscale_simulations.devices import Devices, devices_of, table_of
from fedscale_simulations.engines.choice import Choice, opened
from fedscale_simulations.engines.desk import Answer, Desk, keep
from fedscale_simulations.files import require_folder
from fedscale_simulations.job import Job, Table, assemble, importable, require_clients, strategy_of
from fedscale_simulations.masks import Mode, Wanted, ground_of, wanted_of
from fedscale_simulations.pace import Still, paced
from fedscale_simulations.result import Progress, Simulation
from fedscale_simulations.stream import Stream
from fedscale_simulations.world import World

Watch: TypeAlias = Callable[[Progress], None]


def simulate(  # noqa: PLR0913 - every table of a plan is an argument
    app: App | Learner,
    data: Mapping[str, Any],
    *,
    strategy: Strategy | None = None,
    rounds: int = 10,
    seed: int = 0,
    clients: Clients | Mapping[str, Any] | None = None,
    train: Training | Mapping[str, Any] | None = None,
    aggregate: Aggregate | Mapping[str, Any] | None = None,
    evaluate: Evaluate | Mapping[str, Any] | None = None,
    secagg: Wanted = None,
    privacy: DP | Mapping[str, Any] | None = None,
    devices: Devices | Mapping[str, Any] | None = None,
    name: str = "simulation",
    plan: Plan | None = None,
    folder: str | Path | None = None,
    resume: str | Path | None = None,
    on_progress: Watch = lambda _: None,
    engine: str = "auto",
    workers: int | None = None,
) -> Simulation:
    """Simulate a federation in this process.

    Args:
        app: an ``App``, which is trained with torch, or any ``Learner``.
        data: the virtual clients: a ``Population``, or a mapping from names to whatever the learner takes.
        strategy: how to learn; ``fed_avg()`` by default.
        rounds: how many.
        seed: of everything random.
        clients: who takes part, the plan's ``[clients]``: ``{"select": 50}``.
        train: local training, the plan's ``[train]``: ``{"epochs": 2, "optimizer": {"name": "adam", "lr": 0.001}}``.
        aggregate: the plan's ``[aggregate]``; by default the cap on weights is the power of two that fits the largest client.
        evaluate: the plan's ``[evaluate]``; its metrics are the app's unless they are given.
        secagg: the plan's ``[secagg]``; ``True`` is the table with its defaults. Cohorts of up to 32 run the protocol as it is
            deployed, larger ones take the same sum in the clear, and the record says which; ``"protocol"`` and ``"exact"`` choose.
        privacy: the plan's ``[privacy]``: ``fs.DP(epsilon=8, delta=1e-5)``. The record and the summary say what each client has spent. All
            chance comes from the seed, so that the run can be repeated.
        devices: speeds, bandwidths and availability of the clients' devices, as in ``[devices]``: ``{"speed_spread": 1.5}``;
            the run then takes place in virtual time. Without it everybody is there and answers at once.
        name: the job's name.
        plan: a whole plan instead of the arguments from ``rounds`` to ``name``; ``strategy`` only if the plan's is custom.
        folder: where checkpoints go after every phase, and in the end the summary, the report and the model, in the place of an earlier run's.
        resume: go on from the checkpoint in this folder, and leave everything there; all else must be as it was.
        on_progress: called after every client and every closed round.
        engine: how the clients' work is done: ``sequential`` and ``pool`` give a deployment's bits, ``auto`` tries which of
            both is faster; ``vectorized`` trains many clients at once where the model allows it, equal up to rounding;
            ``ray`` gives a deployment's bits on the machines of a Ray cluster.
        workers: how many processes, for engines that have several; one for each processor by default.

    Returns:
        The ended run. One that failed is returned as well, with the reason in its record.

    Raises:
        PlanError: an argument is of a wrong type or out of its range, or they do not go together.
        AppError: ``app`` is neither an ``App`` nor a ``Learner``, or names a metric that does not exist.
        DataError: ``data`` is no mapping of clients.
        ConfigError: ``folder`` cannot be used.
        NotFound: there is no checkpoint to resume from.
    """
    require_kinds(strategy=strategy, plan=plan, folder=folder, resume=resume, on_progress=on_progress, workers=workers)
    require_clients(data)
    learner = as_learner(app, keep(data))
    masks, mode = wanted_of(secagg)
    tables: dict[str, Given] = {"clients": clients, "train": train, "aggregate": aggregate, "evaluate": evaluate}
    hidden: dict[str, Given] = {"secagg": masks, "privacy": privacy}
    if plan is None:
        strategy = strategy or fed_avg()
        tables["aggregate"] = aggregate or weight_cap(app, data)
        tables |= {"job": {"name": name, "seed": seed}, "strategy": described(strategy) | {"rounds": rounds}}
        tables |= {table: value for table, value in hidden.items() if value is not None}
        plan = plan_of(tables, tuple(app.metrics) if isinstance(app, App) else (), len(data))
    elif given := [table for table, value in (tables | hidden | ({} if mode == "auto" else {"secagg": None})).items() if value is not None]:
        raise PlanError(f"a plan is given and '{given[0]}' as well", hint="put it into the plan")
    else:
        strategy = strategy_of(plan, strategy)
    return _simulate(Job(plan, strategy, learner, data), folder, resume, on_progress, Choice(engine, workers), devices_of(devices), mode)


def simulate_file(  # noqa: PLR0913 - as many as the command has options
    path: str | Path,
    clients: int | None = None,
    overrides: Iterable[str] = (),
    folder: str | Path | None = None,
    on_progress: Watch = lambda _: None,
    *,
    table: Table | None = None,
    devices: Devices | None = None,
    resume: str | Path | None = None,
    engine: str = "auto",
    workers: int | None = None,
) -> Simulation:
    """Simulate a job file: the same plan and app that would be submitted to a coordinator.

    Args:
        path: the job file; the app is imported from its folder.
        clients: how many virtual clients.
        overrides: ``a.b=value`` settings that win over the file.
        folder: as in ``simulate``.
        on_progress: as in ``simulate``.
        table: where the data come from; without it the app's module says so, see ``fedscale_simulations.job``.
        devices: the clients' devices, in place of the file's ``[devices]``.
        resume: as in ``simulate``.
        engine: as in ``simulate``.
        workers: as in ``simulate``.

    Raises:
        PlanError: the file is no valid plan.
        AppError: the app cannot be imported, or as in ``simulate``.
        DataError: there are no data, or they cannot be spread.
        ConfigError, NotFound: as in ``simulate``.
    """
    plan, home = Plan.load(Path(path), overrides), Path(path).parent
    with importable(home):
        job = assemble(plan, home, clients, table)
        return _simulate(job, folder, resume, on_progress, Choice(engine, workers), devices or table_of(Path(path), overrides))


def _simulate(
    job: Job,
    folder: str | Path | None,
    resume: str | Path | None,
    on_progress: Watch,
    choice: Choice,
    devices: Devices | None,
    secagg: Mode = "auto",
) -> Simulation:
    """Simulate a job, from its beginning or from a checkpoint."""
    target = None if folder is None and resume is None else Path(folder or resume or "")
    census, keeper = Census(job.data), Keeper(target)
    facts: dict[str, JSON] = {"population": census.facts} | ({"devices": devices.model_dump()} if devices else {})
    ground = ground_of(job.plan, len(census.names), secagg, facts)
    run, before, state = Run(job.plan, job.strategy, ground=ground), None, None
    if resume is not None:
        run, before, state = load(Path(resume), job.plan, job.strategy, census.listed, facts, ground)
    if target is not None:
        require_folder(target)
    pace = paced(devices, census, job.plan) if devices else Still(census.names)
    masked = job.plan.secagg.enabled and ground.protocol
    desk, now = Desk(job.plan, job.strategy, job.learner, job.data, masked=masked), before.seconds if before else 0.0
    with one_thread(), opened(choice.after(before), desk, facts) as engine:
        world = Stream(run, desk, engine, pace, on_progress, now) if job.strategy.buffer else World(run, engine, pace, on_progress, now)
        if state is not None and isinstance(world, Stream):
            world.restore(*state)
        clock = world if devices else SystemClock()
        books = Books.after(before, clock, facts) if before else Books(clock, facts)
        _play(run, world, books, lambda: keeper.keep(run, lambda: books.record(run, census.listed), world.snapshot), on_progress)
    books.close(None)
    facts |= statement(job.plan, job.data, run.history)
    result = Simulation(books.record(run, census.listed), run.schema, run.model)
    if target is not None:
        result.save(target)
    return result


def _play(run: Run, world: World | Stream, books: Books, commit: Callable[[], None], on_progress: Watch) -> None:
    """Drive a run to its end: effects to the world, events from it."""
    effects = run.begin()
    while True:
        for effect in effects:
            world.perform(effect)
            if isinstance(effect, Assign):
                books.sent(effect.tasks)
            elif isinstance(effect, Commit):
                on_progress(world.progress(books.close(effect.outcome)))
                commit()
        if run.status != RUNNING:
            return
        current, event = run.round, world.next()
        effects = run.handle(event)
        if isinstance(event, Answer):
            books.received(event, world.asked)
            if not isinstance(event, Summed):
                on_progress(world.progress())
        if current is not None and current.status is Status.FAILED:
            on_progress(world.progress(books.close(current.missed())))
