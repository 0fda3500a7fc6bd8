"""Workers on a Ray cluster: one copy of the model per machine and round, sums added up in a tree.

Each piece of work gives one sum in the ring, where the order of additions does not matter: any number of workers, and any of
them dying, gives the bits of one process that works alone. A piece is lost with its worker and done again by another.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedscale.errors import ConfigError, RunFailed
from fedscale.events import Failed, Summed
from fedscale.ring import Words
from fedscale.task import Tasks
from fedscale.torch_learner import TorchLearner
from fedscale.vector import Vector
from fedscale_simulations.engines.desk import Answer, Desk, nothing
from fedscale_simulations.engines.forms import Tick, Waves
from fedscale_simulations.engines.member import Member, merged

AHEAD = 2  # pieces a worker has at a time, so that it never waits for the next
PIECES = 4  # for each worker in a round: small enough to end together and to lose little with a worker
FAN_IN = 8
MOST_DEATHS = 3
START_SECONDS = 120.0
KNOCK_SECONDS = 10.0


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


def knock(address: str) -> None:
    """See whether anybody listens at an address, where it is one: Ray itself would try for minutes before it says that nobody does.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


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
        workers: how many workers of one processor each; where it is ``None``, as many as the cluster has GPUs if the plan wants
            them, else processors.

    Raises:
        ConfigError: ray is not installed, or there is no cluster, or it has no GPU and the plan wants one.
    """

    def __init__(self, desk: Desk, workers: int | None = None) -> None:
        self._ray, self._desk = ray(), desk
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect()
        gpus = self._gpus()
        self.workers = workers or gpus or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        # Ray keeps a processor for each worker, so that none starves another; sums are added up beside them. Who asks for a part
        # of a GPU sees that one alone, else all would crowd on the first.
        share = 1 / -(-self.workers // gpus) if gpus else 0
        surroundings = {"env_vars": {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}}
        self._member = self._ray.remote(num_cpus=1, num_gpus=share, runtime_env=surroundings)(Member)
        self._merge = self._ray.remote(num_cpus=0, runtime_env=surroundings)(merged)
        learner = desk.learner
        app = learner.app if isinstance(learner, TorchLearner) else learner
        self._what = [self._ray.put(value) for value in (desk.plan, desk.strategy, app, desk.data)]
        self._members: list[Any] = []

    def _gpus(self) -> int:
        """How many GPUs there are for the clients; none where the processor is asked for, or nobody says that a learner of one's own wants any.

        Raises:
            ConfigError: there are none, and the plan asks for them.
        """
        wanted, found = self._desk.plan.train.device, int(self._ray.cluster_resources().get("GPU", 0))
        if wanted == "cuda" and not found:
            raise ConfigError("the plan asks for CUDA, and the Ray cluster has no GPU", where="train.device", hint='use device = "auto"')
        return found if wanted == "cuda" or (wanted == "auto" and isinstance(self._desk.learner, TorchLearner)) else 0

    def _connect(self) -> None:
        """Join the cluster.

        Raises:
            ConfigError: there is none.
        """
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            knock(address)
            self._ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            where, hint = "" if address == "auto" else f"RAY_ADDRESS={address}", "start one with: ray start --head"
            raise ConfigError("no Ray cluster can be reached", where=where, why=type(error).__name__, hint=hint) from None

    def work(self, tasks: Tasks, model: Vector | None, wanted: int | None = None, tick: Tick = nothing) -> Iterator[Answer]:
        """Answer the tasks: failures as they happen, and the sum of all others in the end."""
        if model is None or tasks.schema is None:
            yield from (self._desk.answer(task, model) for task in tasks)
            return
        apart = self._desk.apart(tasks.phase)
        if not self._members:
            self._members = [self._hired() for _ in range(self.workers)]
        course, waves = Course(self, tasks, self._ray.put(model), apart=apart), Waves(tasks, None if apart else wanted)
        for wave in waves:
            for piece, answers in course.play(wave.nodes):
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

    def ask(self, at: int, piece: Piece, tasks: Tasks, model: Any, *, apart: bool) -> None:
        """Give a piece to a worker."""
        method = self._members[at].answer if apart else self._members[at].add
        piece.told, piece.total = method.options(num_returns=2).remote(tasks.to(list(piece.nodes)), model)

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
        tasks: the round's.
        model: reference to the global model.
        apart: whether the answers are wanted one by one.
    """

    def __init__(self, cluster: Cluster, tasks: Tasks, model: Any, *, apart: bool) -> None:
        self._cluster, self._tasks, self._model, self._apart = cluster, tasks, model, apart
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
                    self._cluster.ask(at, pieces[-1], self._tasks, self._model, apart=self._apart)
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
