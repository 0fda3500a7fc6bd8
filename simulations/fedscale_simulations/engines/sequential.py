"""One virtual client after the other, in this process: the reference that every other engine must match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

from fedscale.errors import Cause, Failure, UpdateRejected
from fedscale.events import Answered, Failed, Initialized
from fedscale.learner import Learner, Phase
from fedscale.plan import Plan
from fedscale.run import model_digest
from fedscale.strategy import Strategy
from fedscale.task import FirstModel, Task, perform, portion
from fedscale.vector import Vector
from fedscale_simulations.failures import failure_of

Answer: TypeAlias = Answered | Initialized | Failed

KEEP = 4096


class Engine(Protocol):
    """Does the tasks of virtual clients."""

    def work(self, tasks: Sequence[Task], model: Vector | None) -> Iterator[Answer]:
        """Answer each task, in the order in which the answers arrive; whoever has enough of them stops asking.

        Args:
            tasks: what is asked, all of one round.
            model: the global model, not to be changed; ``None`` when the first model is asked for.
        """


class Sequential:
    """Does one task after the other, each when its answer is asked for.

    Args:
        plan: the configuration of the run.
        strategy: the strategy of the run.
        learner: does the clients' work; one for all, because a learner keeps nothing that matters between calls.
        data: each client's dataset by name.
    """

    def __init__(self, plan: Plan, strategy: Strategy, learner: Learner, data: Mapping[str, Any]) -> None:
        self._plan, self._strategy, self._learner, self._data = plan, strategy, learner, data
        # A learner recognises prepared data by identity, so the parts of a dataset are cut once, not once a round.
        self._portion = lru_cache(maxsize=KEEP)(self._cut)

    def work(self, tasks: Sequence[Task], model: Vector | None) -> Iterator[Answer]:
        """Answer each task in the order given."""
        for task in tasks:
            yield self._answer(task, model)

    def _cut(self, name: str, phase: Phase) -> object:
        """The part of a client's dataset that a phase may see."""
        return portion(self._plan, phase, self._data[name])

    def _answer(self, task: Task, model: Vector | None) -> Answer:
        """A client's answer or, whatever its code does, the failure a coordinator would hear of."""
        try:
            done = perform(task, self._plan, self._strategy, self._learner, self._portion(task.node, task.phase), model)
        except Exception as error:  # noqa: BLE001 - the boundary to foreign code: a client's fault must not end the simulation
            return Failed(task.node, failure_of(error))
        if isinstance(done, FirstModel):
            return Initialized(task.node, done.schema.to_json(), model_digest(done.model), done.model)
        try:
            task.layout.check(done)
        except UpdateRejected as error:
            return Failed(task.node, Failure(Cause.REJECTED, error.what, where=error.where, hint=error.hint))
        # Nothing is stored under the digest of an answer here, and hashing would cost more than a small client's training.
        return Answered(task.node, "", done)
