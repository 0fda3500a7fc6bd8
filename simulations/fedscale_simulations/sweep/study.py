"""A search that lies in a folder: Optuna proposes, workers try, the journal remembers."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
import tomli_w
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from fedscale.errors import ConfigError, Conflict, RunFailed
from fedscale.sampling import derived_seed
from fedscale_simulations.files import replace_file
from fedscale_simulations.sweep.crew import Crew
from fedscale_simulations.sweep.space import Dimension, Search, Value, as_overrides

JOURNAL, LOG, TRIALS, LOCK = "sweep.journal", "workers.log", "trials", "lock"
# Attributes of a study and of its trials: the search it belongs to; the trial it does again; where it lies; why it failed.
FACTS, AGAIN, PLACE, REASON = "search", "again", "place", "reason"


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial that has ended.

    Args:
        number: which; that of its folder.
        settings: what it tried.
        value: the last value of the monitored metric; ``None`` for a trial that failed.
        reason: why it failed.
        seconds: how long it took.
    """

    number: int
    settings: dict[str, Value]
    value: float | None
    reason: str
    seconds: float


class Hunt:
    """Runs the trials of a search until there are enough.

    Args:
        search: what is searched.
        folder: where the journal and the trials lie; what is there already counts, and what was interrupted goes on.
        clients: how many virtual clients, where the app leaves that open.

    Raises:
        ConfigError: the folder holds another sweep, or cannot be written.
    """

    def __init__(self, search: Search, folder: Path, clients: int | None = None) -> None:
        self._search, self._folder, self._clients = search, folder, clients
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        except OSError as error:
            raise ConfigError("the sweep cannot be written", where=str(folder), why=error.strerror or type(error).__name__) from error
        self._study = optuna.create_study(storage=storage, study_name="sweep", direction=search.direction, load_if_exists=True)
        facts = json.dumps(search.facts | {"clients": clients}, sort_keys=True)
        if self._study.user_attrs.get(FACTS, facts) != facts:
            raise ConfigError("the folder holds another sweep", where=str(folder), hint="choose another folder with --out, or put the job file back")
        self._study.set_user_attr(FACTS, facts)

    @property
    def tried(self) -> list[Tried]:
        """All trials that have ended, in order; those that were interrupted and done again appear once."""
        ended = self._study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))
        redone = {trial.user_attrs.get(AGAIN) for trial in self._study.get_trials()}
        return sorted((_tried(trial) for trial in ended if trial.number not in redone), key=lambda tried: tried.number)

    @property
    def best(self) -> Tried:
        """The trial with the best value.

        Raises:
            RunFailed: none has completed.
        """
        done = [trial for trial in self.tried if trial.value is not None]
        if not done:
            raise RunFailed("no trial of the sweep completed", where=str(self._folder), why=next((trial.reason for trial in self.tried), ""))
        sign = -1.0 if self._search.direction == "maximize" else 1.0
        return min(done, key=lambda trial: sign * (trial.value or 0.0))

    def run(self, trials: int, workers: int, tell: Callable[[Tried], None]) -> None:
        """Try until so many trials have ended in all.

        Args:
            trials: how many, those of earlier calls included.
            workers: how many at a time.
            tell: called with each that ends.

        Raises:
            Conflict: another process is at work on this sweep.
        """
        pending: dict[Future[dict[str, Any]], Trial] = {}
        with self._alone():
            self._take_up()
            left = trials - len(self.tried)
            if left <= 0:
                return
            with Crew(min(workers, left), self._folder / LOG) as crew:
                while left or pending:
                    while left and len(pending) < crew.size:
                        trial = self._study.ask()
                        pending[crew.submit(self._request(trial))] = trial
                        left -= 1
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        tell(self._close(pending.pop(future), future.result()))

    def write_best(self, path: Path) -> None:
        """Write the job file with the best settings.

        Raises:
            RunFailed: no trial has completed.
            ConfigError: the file cannot be written.
        """
        replace_file(path, tomli_w.dumps(self._search.tree(self.best.settings)).encode())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from this sweep, which would take what is at work here for interrupted."""
        with (self._folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hint = "wait until it has ended, or choose another folder with --out"
                raise Conflict("another process is at work on this sweep", where=str(self._folder), hint=hint) from None
            yield

    def _take_up(self) -> None:
        """Let the trials that were interrupted go on."""
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.enqueue_trial(trial.params, {AGAIN: trial.number, PLACE: _place(trial)})
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _request(self, trial: Trial) -> dict[str, Any]:
        """What a worker is asked; drawn from the trial's own seed, so that a sweep that is resumed draws the same."""
        self._study.sampler = TPESampler(seed=derived_seed(self._search.plan.job.seed, trial.number, "sweep") % 2**32)
        settings = {name: _drawn(trial, name, dimension) for name, dimension in self._search.sweep.space.items()}
        overrides = [*self._search.overrides, *as_overrides(settings)]
        folder = self._folder / TRIALS / f"{_place(trial):04d}"
        return {"job": str(self._search.job), "clients": self._clients, "overrides": overrides, "folder": str(folder)}

    def _close(self, trial: Trial, answer: dict[str, Any]) -> Tried:
        """Keep what came of a trial."""
        value, reason = answer["metrics"].get(self._search.monitor), answer["reason"]
        if not reason and (value is None or not math.isfinite(value)):
            reason = f"{self._search.monitor} was not measured" if value is None else f"{self._search.monitor} is not finite"
        if reason:
            trial.set_user_attr(REASON, reason)
            return _tried(self._study.tell(trial, state=TrialState.FAIL))
        return _tried(self._study.tell(trial, value))


def _place(trial: Trial | FrozenTrial) -> int:
    """The number of a trial's folder: that of the interrupted one it goes on with, or its own."""
    return int(trial.user_attrs.get(PLACE, trial.number))


def _drawn(trial: Trial, name: str, dimension: Dimension) -> Value:
    """The next value of a dimension."""
    if dimension.low is None or dimension.high is None:
        return cast("Value", trial.suggest_categorical(name, dimension.choices))
    if dimension.whole:
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), step=int(dimension.step or 1), log=dimension.log)
    return trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)


def _tried(trial: FrozenTrial) -> Tried:
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    return Tried(_place(trial), dict(trial.params), trial.value, str(trial.user_attrs.get(REASON, "")), seconds)
