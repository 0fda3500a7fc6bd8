"""Which engine does the work: the one asked for, or the fastest of those that give a deployment's bits."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from fedscale.errors import ConfigError, PlanError
from fedscale.learner import Phase
from fedscale.record import JSON, RunRecord
from fedscale.ring import WORD
from fedscale.tables import suggest
from fedscale.task import Tasks
from fedscale.torch_learner import TorchLearner, forkable, slow_halves
from fedscale.vector import Vector
from fedscale_simulations.engines.cluster import Cluster
from fedscale_simulations.engines.desk import Answer, Desk, Engine, nothing
from fedscale_simulations.engines.forms import Alone, Form, Tick, together
from fedscale_simulations.engines.pool import Pool
from fedscale_simulations.engines.sequential import Sequential

ENGINES = ("auto", "sequential", "pool", "vectorized", "ray")
LEAST_GAIN = 1.25
LEAST_SECONDS = 0.25
LEAST_ROUND = 0.01
TRIAL_SECONDS = 0.1
BLOCKS = "--engine vectorized, equal up to rounding,"
UNFORKED = "one process, for torch cannot be forked where it sees a GPU: hide it with CUDA_VISIBLE_DEVICES= to use all processors"
SLOW_HALVES = "mixed precision is slower than full precision on this processor, whose units for bfloat16 are slow: set train.amp = false"


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user wants.

    Args:
        engine: ``auto``, ``sequential``, ``pool``, ``vectorized`` or ``ray``.
        workers: how many processes; as many as there are processors where it is ``None``.
        form: the form a run goes on with, where it has begun before.

    Raises:
        PlanError: there is no such engine.
    """

    engine: str = "auto"
    workers: int | None = None
    form: str = ""

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        if self.engine not in ENGINES:
            raise PlanError(f"there is no engine '{self.engine}'", hint=suggest(self.engine.lower(), ENGINES))

    def after(self, record: RunRecord | None) -> Choice:
        """The choice for a run that goes on: in the form in which it began, so that it ends with the same bits."""
        engine = record.extra.get("engine") if record else None
        return replace(self, form=str(engine["form"])) if isinstance(engine, dict) and "form" in engine else self


class Chooser:
    """An engine that becomes another one when the first clients are to be trained.

    Args:
        choice: what the user wants.
        desk: where a client's work is done.
        facts: where the engine and the reason for it are noted, under ``engine``; the form that was asked for, before anything is done.
    """

    def __init__(self, choice: Choice, desk: Desk, facts: dict[str, JSON]) -> None:
        self._choice, self._desk, self._facts = choice, desk, facts
        self._engine: Engine | None = None
        if choice.form or choice.engine != "auto":
            # Whoever goes on with a run of which there is no more than the first model need not ask for it again.
            facts["engine"] = {"form": choice.form or ("vectorized" if choice.engine == "vectorized" else "sequential")}
        if choice.engine == "ray":
            # Joined before anything is trained or written, for who has no cluster is to know now.
            self._engine = self._joined()

    def work(self, tasks: Tasks, model: Vector | None, wanted: int | None = None, tick: Tick = nothing) -> Iterator[Answer]:
        """As the engine that was chosen."""
        if self._engine is None and (not tasks or model is None or tasks.phase is not Phase.TRAIN):
            return Sequential(self._desk, Alone(self._desk)).work(tasks, model, wanted, tick)
        if self._engine is None and model is not None:
            self._engine = self._chosen(tasks, model)
        return self._engine.work(tasks, model, wanted, tick) if self._engine else iter(())

    def close(self) -> None:
        """End what the engine has started."""
        if self._engine is not None:
            self._engine.close()

    def _joined(self) -> Cluster:
        """The engine on a Ray cluster, and a note of it.

        Raises:
            ConfigError: there is no such cluster, or the run began in a form that it does not compute.
        """
        if self._choice.form not in ("", "sequential"):
            what, why = f"a Ray cluster cannot go on with a run that began as {self._choice.form}", "clients one by one round differently"
            raise ConfigError(what, why=why, hint=f"use --engine {self._choice.form}")
        cluster = Cluster(self._desk, self._choice.workers)
        self._facts["engine"] = {"form": "sequential", "workers": cluster.workers, "why": "asked for, on a Ray cluster"}
        return cluster

    def _chosen(self, tasks: Tasks, model: Vector) -> Engine:
        """The engine, and a note of why."""
        form, each, why = self._form(tasks, model)
        workers = self._workers(len(tasks), each)
        why = "; ".join((why, *self._slow()))
        self._facts["engine"] = {"form": form.name, "workers": workers, "why": why}
        return Sequential(self._desk, form) if workers == 1 else Pool(self._desk, form, workers)

    def _slow(self) -> Iterator[str]:
        """What makes this machine slower than it could be."""
        if self._on_cuda():
            return
        if self._choice.engine != "sequential" and self._choice.workers != 1 and not self._forked():
            yield UNFORKED
        if isinstance(self._desk.learner, TorchLearner) and self._desk.plan.train.amp and slow_halves():
            yield SLOW_HALVES

    def _form(self, tasks: Tasks, model: Vector) -> tuple[Form, float, str]:
        """How clients are trained, how many seconds one takes, and why so."""
        wanted, alone = self._choice.form or self._choice.engine, Alone(self._desk)
        asked = "as the run began" if self._choice.form else "asked for"
        if wanted in ("sequential", "pool"):
            return alone, self._seconds(alone, tasks, model) if self._forkable() else 0.0, asked
        many, why = together(self._desk)
        if many is None:
            return alone, self._seconds(alone, tasks, model) if self._forkable() else 0.0, why
        if wanted == "vectorized":
            return many, self._seconds(many, tasks, model), asked
        if self._on_cuda():
            # No deployment has the bits of this GPU, so none are lost; and no stopwatch decides.
            return many, 0.0, "many small clients at once fill a GPU"
        one, each = self._seconds(alone, tasks, model), self._seconds(many, tasks, model)
        # Blocks round differently, and what takes longer depends on the day: bits that anybody can have again come first.
        offer = f"a deployment's bits; {BLOCKS} takes {each / one:.2g} of the time"
        return alone, one, offer if one > LEAST_GAIN * each else "the fastest form"

    def _seconds(self, form: Form, tasks: Tasks, model: Vector) -> float:
        """How long a client takes: a block to warm up, then blocks for a moment, whose answers are thrown away."""
        if self._choice.engine != "auto":
            return 0.0
        blocks = sorted(form.blocks(tasks), key=len, reverse=True)[:8]
        total = np.zeros(tasks.layout.length, WORD)
        form.add(blocks[0], model, total)
        began, clients = time.perf_counter(), 0
        for block in blocks:
            form.add(block, model, total)
            clients += len(block)
            if time.perf_counter() - began > TRIAL_SECONDS:
                break
        return (time.perf_counter() - began) / clients

    def _workers(self, clients: int, each: float) -> int:
        """How many processes: one where they would not earn their start, or where the learner's work cannot be forked."""
        engine, workers = self._choice.engine, self._choice.workers
        if engine == "sequential" or workers == 1 or not self._forked():
            return 1
        if engine == "auto":
            rounds = self._desk.plan.strategy.rounds
            if not self._forkable() or clients == 1 or each * clients < LEAST_ROUND or each * clients * rounds < LEAST_SECONDS:
                return 1
        # Nobody is there for more processes than there are clients, whoever asks for them.
        return min(workers or processors(), len(self._desk.data))

    def _forkable(self) -> bool:
        """Whether other processes can do the learner's work: we know it of apps on the processor, and of nothing else."""
        return isinstance(self._desk.learner, TorchLearner) and self._forked() and not beside_grpc()

    def _forked(self) -> bool:
        """Whether a forked process can train an app; what others' learners need is theirs to know."""
        return not isinstance(self._desk.learner, TorchLearner) or forkable()

    def _on_cuda(self) -> bool:
        """Whether clients are trained on CUDA, where one process fills the device."""
        learner = self._desk.learner
        return isinstance(learner, TorchLearner) and learner.on_cuda(self._desk.plan.train.device)


def beside_grpc() -> bool:
    """Whether gRPC is loaded here: its own handlers can make a forked process wait for ever."""
    return "grpc" in sys.modules


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def opened(choice: Choice, desk: Desk, facts: dict[str, JSON] | None = None) -> Iterator[Engine]:
    """The engine that was chosen, closed in the end."""
    engine = Chooser(choice, desk, {} if facts is None else facts)
    try:
        yield engine
    finally:
        engine.close()
