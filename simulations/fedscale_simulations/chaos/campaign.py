"""A campaign: the oracle's job is run again and again while faults are inflicted, until all are done and the last run has ended by itself."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any, Protocol, TypeAlias

import numpy as np

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.data import from_csv
from fedscale.errors import FedscaleError, RunFailed
from fedscale.progress import Bar
from fedscale_simulations.cast import Cast
from fedscale_simulations.chaos.oracle import LABEL, Job, OneHot, count
from fedscale_simulations.chaos.troupe import LOOK_SECONDS, Troupe, Watch

LONGEST_DELAY, LONGEST_WAIT, SHORT_DELAY = 1.0, 4.0, 0.05
MARKED = ("opened", "answered", "closed")
SETTLE_SECONDS = 240.0


class Trouble(Protocol):
    """A kind of fault."""

    def inflict(self, troupe: Troupe, chance: random.Random) -> str:
        """Do it once, and what is needed for the federation to go on; returns what was done, in a word or two."""


Begin: TypeAlias = Callable[[Troupe], AbstractContextManager[Trouble]]


@dataclass
class Tally:
    """What a campaign has found so far.

    Args:
        faults: how many were inflicted.
        rounds: how many were closed.
        lost: accepted answers that are not in a model.
        doubled: answers that are in a model more than once.
        stray: lit coordinates that nobody answered for.
        gaps: events that a watcher missed or heard twice.
        identical: whether every model has the bits of the uninterrupted run.
        unfinished: runs that did not reach their end by themselves.
        runs: how many there were.
        kinds: how often each kind of fault was inflicted.
    """

    faults: int = 0
    rounds: int = 0
    lost: int = 0
    doubled: int = 0
    stray: int = 0
    gaps: int = 0
    identical: bool = True
    unfinished: int = 0
    runs: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, doubled or left open."""
        return self.identical and not (self.lost or self.doubled or self.stray or self.gaps or self.unfinished)


@dataclass
class Campaign:
    """Faults against a federation that is open.

    Args:
        troupe: the federation.
        trouble: the kind of fault.
        times: how many faults.
        chance: decides when and whom.
        show: told the fraction that is done, what is going on, and the time.
        strict: whether every model must have the bits of the uninterrupted run, which it cannot where rounds close without everybody.
    """

    troupe: Troupe
    trouble: Trouble
    times: int
    chance: random.Random
    show: Callable[[float, str, float], None] = lambda *_: None
    strict: bool = True
    tally: Tally = field(default_factory=Tally)

    def play(self) -> Tally:
        """To its end; returns what was found."""
        expected = uninterrupted(self.troupe)
        for node in self.troupe.job.nodes:
            self.troupe.start_node(node)
        while self.tally.faults < self.times and not self.tally.unfinished:
            run = self.troupe.submit(f"{self.chance.getrandbits(64):x}")
            watch = self.troupe.watch(run)
            self._disturb(watch)
            self.tally.runs += 1
            if self._settled(watch):
                self._check(run, watch, expected)
            else:
                self.tally.unfinished += 1
        return self.tally

    def _disturb(self, watch: Watch) -> None:
        """Inflict faults for as long as the run lasts and there are any left."""
        while self.tally.faults < self.times and not watch.over:
            self._moment(watch)
            kind = self.trouble.inflict(self.troupe, self.chance)
            self.tally.faults += 1
            self.tally.kinds[kind] = self.tally.kinds.get(kind, 0) + 1
            self._tell(watch, kind)

    def _moment(self, watch: Watch) -> None:
        """Wait for the next moment: any at all, or just after something has happened."""
        watch.read()
        if self.chance.random() < 0.4:
            time.sleep(self.chance.uniform(0.0, LONGEST_DELAY))
            return
        kind, ends = self.chance.choice(MARKED), time.monotonic() + LONGEST_WAIT
        while not any(event["kind"] == kind for event in watch.read()) and time.monotonic() < ends and not watch.over:
            time.sleep(LOOK_SECONDS)
        time.sleep(self.chance.uniform(0.0, SHORT_DELAY))

    def _settled(self, watch: Watch) -> bool:
        """Whether the run ends by itself; every event gives it time anew."""
        ends = time.monotonic() + SETTLE_SECONDS
        while not watch.over and time.monotonic() < ends:
            if watch.read():
                ends = time.monotonic() + SETTLE_SECONDS
                self._tell(watch, "the run ends")
            time.sleep(LOOK_SECONDS)
        watch.read()
        return watch.over

    def _tell(self, watch: Watch, doing: str) -> None:
        closed = self.tally.rounds + sum(event["kind"] == "closed" for event in watch.events)
        self.show(self.tally.faults / self.times, f"{doing}, fault {self.tally.faults} of {self.times}, {closed} rounds", time.monotonic())

    def _check(self, run: str, watch: Watch, expected: str) -> None:
        """Ask the oracle."""
        record = self.troupe.record(run)
        self.tally.rounds += len(record.rounds)
        if record.status != "completed":
            console.note(f"run {run} {record.status}: {record.reason}")
            self.tally.unfinished += 1
            return
        counted = count(self.troupe.job, record, self.troupe.model(run), self.troupe.accepted(run))
        self.tally.lost += counted.lost
        self.tally.doubled += counted.doubled
        self.tally.stray += counted.stray
        self.tally.gaps += watch.gaps()
        self.tally.identical &= record.model_digest == expected or not self.strict


def uninterrupted(troupe: Troupe) -> str:
    """Digest of the model that the job comes to when nothing happens, from a simulation."""
    job = troupe.job
    tables = {node: from_csv(troupe.folder / "tables" / f"{node}.csv", LABEL) for node in job.nodes}
    simulate = later("fedscale_simulations.simulator:simulate")
    return str(simulate(OneHot(len(job.nodes), job.rounds), tables, plan=job.plan(), engine="sequential").digest)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all verbs have in common.

    Args:
        nodes: how many.
        rounds: of one run.
        seed: decides when, whom and how; drawn when it is ``None``.
        database: URL of the coordinator's database.
        out: the folder to keep.
        as_json: end with an envelope.
    """

    nodes: int
    rounds: int
    seed: int | None
    database: str
    out: Path | None
    as_json: bool

    def job(self, **terms: Any) -> Job:
        """The oracle's job."""
        return Job(tuple(f"node-{number:02}" for number in range(self.nodes)), self.rounds, **terms)


def conduct(verb: str, setting: Setting, times: int, begin: Begin, job: Job | None = None, *, strict: bool = True, clocks: bool = False) -> int:
    """A whole command: open a federation, play a campaign, print what was found; returns the exit code."""
    seed = random.SystemRandom().getrandbits(32) if setting.seed is None else setting.seed
    folder = Path(mkdtemp(prefix="fedscale-chaos-")) if setting.out is None else setting.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Bar(f"chaos {verb}") as bar, Cast(tell=lambda _: None) as cast:
        troupe = Troupe(cast, folder, job or setting.job(), setting.database, clocks)
        troupe.open()
        opened = time.monotonic()
        with begin(troupe) as trouble:
            tally = Campaign(troupe, trouble, times, random.Random(seed), bar.update, strict).play()  # noqa: S311 - a seed that can be given again
        seconds = time.monotonic() - opened
    data = _result(verb, tally, troupe, seed) | {"seconds": seconds, "seconds_total": time.monotonic() - began}
    if tally.sound and setting.out is None:
        shutil.rmtree(folder, ignore_errors=True)
    return conclude(verb, tally, data, folder, as_json=setting.as_json)


def _result(verb: str, tally: Tally, troupe: Troupe, seed: int) -> dict[str, Any]:
    """The counters by the names that people read, and how quickly the coordinator came back."""
    values = asdict(tally)
    noun = "kills" if verb == "kill" else "faults"
    again = troupe.restarts[1:]
    restart = {"p50": median(again), "p99": float(np.quantile(again, 0.99))} if again else {}
    return {noun: values.pop("faults"), **values, "restart_seconds": restart, "seed": seed}


def conclude(verb: str, tally: Tally, data: dict[str, Any], folder: Path, *, as_json: bool) -> int:
    """Print the counters; returns exit code 1 when something was lost, doubled or left open."""
    if tally.sound:
        console.emit(data, console.facts({name.replace("_", " "): value for name, value in data.items()}), as_json=as_json)
        return 0
    problem: FedscaleError = RunFailed(
        f"chaos {verb} has found a fault", where=str(folder), why=", ".join(f"{k} {v}" for k, v in data.items()), hint="report it with that folder"
    )
    return console.refuse(problem, as_json=as_json, data=data)
