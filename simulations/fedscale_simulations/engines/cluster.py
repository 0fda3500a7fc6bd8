"""Workers on a Ray cluster: one copy of the model per machine and round, sums added up in a tree.

Each piece of work gives one sum in the ring, where the order of additions does not matter: any number of workers, and any of
them dying, gives the bits of one process that works alone. A piece is lost with its worker and done again by another.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedscale.errors import ConfigError, RunFailed
from fedscale.events import Answered, Failed, Initialized, Summed
from fedscale.learner import App, Learner
from fedscale.plan import Plan
from fedscale.ring import WORD, Words
from fedscale.strategy import Strategy
from fedscale.task import Task
from fedscale.torch_learner import TorchLearner, as_learner, one_thread
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Answer, Desk, keep, nothing
from fedscale_simulations.engines.forms import Tick, Waves

AHEAD = 2  # pieces a worker has at a time, so that it never waits for the next
PIECES = 4  # for each worker in a round: small enough to end together and to lose little with a worker
FAN_IN = 8
MOST_DEATHS = 3
START_SECONDS = 120.0


def ray() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray as package
    except ImportError:
        raise ConfigError("the engine 'ray' needs the package ray", hint="pip install 'fedscale-fl[ray]'") from None
    return package


class Member:
    """What runs in a worker of the cluster: the same desk as anywhere.

    Args:
        plan: the configuration of the run.
        strategy: the strategy of the run.
        app: an ``App`` or a ``Learner``.
        data: each client's dataset by name.
    """

    def __init__(self, plan: Plan, strategy: Strategy, app: App | Learner, data: Mapping[str, Any]) -> None:
        self._desk = Desk(plan, strategy, as_learner(app, keep(data)), data)

    def add(self, first: Task, nodes: Sequence[str], model: Vector) -> tuple[list[Failed], Words]:
        """The sum of the answers of these clients, and the failures of those whose answers are not in it."""
        total = np.zeros(first.layout.length, WORD)
        with one_thread():
            failed = [self._desk.add(replace(first, node=node), model, total) for node in nodes]
        return [failure for failure in failed if failure is not None], total

    def answer(self, first: Task, nodes: Sequence[str], model: Vector) -> tuple[list[Answered | Initialized | Failed], None]:
        """The answers of these clients one by one."""
        with one_thread():
            return [self._desk.answer(replace(first, node=node), model) for node in nodes], None


def merged(*parts: Words) -> Words:
    """The sum of sums."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


@dataclass(slots=True, eq=False)
class Piece:
    """Clients that one worker does in one go, and the references to what comes of it."""

    nodes: Sequence[str]
    told: Any = None
    total: Any = None


class Cluster:
    """Does clients on the machines of a Ray cluster.

    A cluster that this process is connected to is used as it is; otherwise the one at ``RAY_ADDRESS``, or the one that runs on
    this machine. The folders on ``sys.path`` must be found under the same names on all machines.

    Args:
        desk: where a client's work is done.
        workers: how many workers of one processor each; as many as the cluster has processors where it is ``None``.

    Raises:
        ConfigError: ray is not installed, or there is no cluster.
    """

    def __init__(self, desk: Desk, workers: int | None = None) -> None:
        self._ray, self._desk = ray(), desk
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect()
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        # Ray keeps a processor for each worker, so that none starves another; sums are added up beside them.
        options = {"num_cpus": 1, "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}}}
        self._member = self._ray.remote(**options)(Member)
        self._merge = self._ray.remote(num_cpus=0, runtime_env=options["runtime_env"])(merged)
        learner = desk.learner
        app = learner.app if isinstance(learner, TorchLearner) else learner
        self._what = [self._ray.put(value) for value in (desk.plan, desk.strategy, app, desk.data)]
        self._members: list[Any] = []

    def _connect(self) -> None:
        """Join the cluster.

        Raises:
            ConfigError: there is none.
        """
        try:
            self._ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError("no Ray cluster can be reached", why=type(error).__name__, hint="start one with: ray start --head") from None

    def work(self, tasks: Sequence[Task], model: Vector | None, wanted: int | None = None, tick: Tick = nothing) -> Iterator[Answer]:
        """Answer the tasks: failures as they happen, and the sum of all others in the end."""
        first = tasks[0]
        if model is None or first.schema is None:
            yield from (self._desk.answer(task, model) for task in tasks)
            return
        apart = self._desk.apart(first.phase)
        if not self._members:
            self._members = [self._hired() for _ in range(self.workers)]
        course, waves = Course(self, first, self._ray.put(model), apart=apart), Waves(tasks, None if apart else wanted)
        for wave in waves:
            for piece, answers in course.play([task.node for task in wave]):
                yield from answers
                if not apart:
                    waves.missing += len(answers)
                    tick(len(piece.nodes) - len(answers))
        if not apart and course.nodes:
            yield Summed(tuple(course.nodes), course.total())

    def close(self) -> None:
        """End the workers, and leave the cluster where this engine joined it."""
        for member in self._members:
            self._ray.kill(member)
        self._members = []
        if self._ours:
            self._ray.shutdown()

    def _hired(self) -> Any:
        """A new worker, which Ray starts when there is room for it."""
        return self._member.remote(*self._what)

    def replace(self, at: int) -> None:
        """A new worker in the place of one that died."""
        self._ray.kill(self._members[at])
        self._members[at] = self._hired()

    def ask(self, at: int, piece: Piece, first: Task, model: Any, *, apart: bool) -> None:
        """Give a piece to a worker."""
        method = self._members[at].answer if apart else self._members[at].add
        piece.told, piece.total = method.options(num_returns=2).remote(first, list(piece.nodes), model)

    def tree(self, totals: Sequence[Any]) -> Words:
        """The sum of the sums behind references, added up where they are; an object that was lost raises Ray's own error."""
        level = list(totals)
        while len(level) > 1:
            level = [self._merge.remote(*level[at : at + FAN_IN]) for at in range(0, len(level), FAN_IN)]
        words: Words = self._ray.get(level[0], timeout=self.patience(1))
        return words

    def patience(self, clients: int) -> float:
        """How many seconds a worker may take for so many clients: each has the time that a node would have."""
        return START_SECONDS + self._desk.plan.clients.deadline * clients

    @property
    def ray(self) -> Any:
        """The package."""
        return self._ray


class Course:
    """The course of one round.

    Args:
        cluster: the workers.
        first: any task of the round.
        model: reference to the global model.
        apart: whether the answers are wanted one by one.
    """

    def __init__(self, cluster: Cluster, first: Task, model: Any, *, apart: bool) -> None:
        self._cluster, self._first, self._model, self._apart = cluster, first, model, apart
        self._done: list[Piece] = []
        self._out: set[str] = set()
        self._deaths = 0

    @property
    def nodes(self) -> list[str]:
        """Whose answers are in the sum."""
        return [node for piece in self._done for node in piece.nodes if node not in self._out]

    def play(self, nodes: Sequence[str]) -> Iterator[tuple[Piece, list[Answer]]]:
        """Have clients done; each piece with what is to be told of it, as it comes in."""
        size = max(1, len(nodes) // (PIECES * self._cluster.workers))
        queue = deque(Piece(nodes[at : at + size]) for at in range(0, len(nodes), size))
        given: list[deque[Piece]] = [deque() for _ in range(self._cluster.workers)]
        while queue or any(given):
            for at, pieces in enumerate(given):
                while queue and len(pieces) < AHEAD:
                    pieces.append(queue.popleft())
                    self._cluster.ask(at, pieces[-1], self._first, self._model, apart=self._apart)
            for at in self._ready(given, size):
                answers = self._heard(at, given[at], queue)
                if answers is not None:
                    piece = given[at].popleft()
                    self._done.append(piece)
                    self._out |= {answer.node for answer in answers if isinstance(answer, Failed)}
                    yield piece, answers

    def _ready(self, given: Sequence[deque[Piece]], size: int) -> list[int]:
        """Which workers have ended their first piece, or died over it.

        Raises:
            RunFailed: none within the time that all of them together may take.
        """
        heads = {pieces[0].told: at for at, pieces in enumerate(given) if pieces}
        ready, _ = self._cluster.ray.wait(list(heads), timeout=self._cluster.patience(size * AHEAD))
        if not ready:
            raise RunFailed(
                "no worker of the Ray cluster answers",
                why="each client had the time of clients.deadline",
                hint="look at the cluster with: ray status",
            )
        return [heads[reference] for reference in ready]

    def _heard(self, at: int, pieces: deque[Piece], queue: deque[Piece]) -> list[Answer] | None:
        """What a worker says of its first piece; nothing where it died, and all it had is for others to do."""
        try:
            answers: list[Answer] = self._cluster.ray.get(pieces[0].told, timeout=self._cluster.patience(1))
        except (self._cluster.ray.exceptions.RayActorError, self._cluster.ray.exceptions.ObjectLostError):
            self._bury()
            queue.extendleft(reversed(pieces))
            pieces.clear()
            self._cluster.replace(at)
            return None
        return answers

    def _bury(self) -> None:
        """Count a death.

        Raises:
            RunFailed: one too many.
        """
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise RunFailed(
                "workers of the Ray cluster die again and again",
                hint="use fewer workers where memory is short, or engine 'sequential' to see the cause",
            )

    def total(self) -> Words:
        """The sum of all pieces; those that were lost with a machine are done again first."""
        while True:
            try:
                return self._cluster.tree([piece.total for piece in self._done])
            except (self._cluster.ray.exceptions.ObjectLostError, self._cluster.ray.exceptions.RayTaskError):
                self._bury()
                self._again()

    def _again(self) -> None:
        """Do again what cannot be fetched any more."""
        kept, lost = list[Piece](), list[Piece]()
        for piece in self._done:
            try:
                self._cluster.ray.get(piece.total, timeout=self._cluster.patience(1))
                kept.append(piece)
            except self._cluster.ray.exceptions.ObjectLostError:
                lost.append(piece)
        self._done = kept
        for piece in lost:
            for _ in self.play(piece.nodes):
                pass
