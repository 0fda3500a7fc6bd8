"""Where one virtual client's work is done: what every engine shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Protocol, TypeAlias

from fedscale.causes import attempted
from fedscale.data import Dataset
from fedscale.errors import Cause, Failure, UpdateRejected
from fedscale.events import Answered, Failed, Initialized, Summed
from fedscale.learner import Learner, Phase, Private
from fedscale.plan import Plan
from fedscale.privacy.lots import derived
from fedscale.ring import Words, add
from fedscale.run import model_digest
from fedscale.strategy import Strategy
from fedscale.task import FirstModel, Task, Tasks, compute, noise_of, perform, portion, private_for
from fedscale.vector import Vector
from fedscale_simulations.failures import failure_of

Answer: TypeAlias = Answered | Initialized | Failed | Summed

KEEP = 4096
KEPT_BYTES = 64 << 20
TRIES = 8  # clients that are looked at where any will do and some cannot be read


def nothing(_: int) -> None:
    """For whoever does not watch."""


class Engine(Protocol):
    """Does the tasks of virtual clients."""

    def work(self, tasks: Tasks, model: Vector | None, wanted: int | None = None, tick: Callable[[int], None] = nothing) -> Iterator[Answer]:
        """Answer tasks, one by one or many in a sum; whoever has enough of the answers stops asking.

        Args:
            tasks: what is asked, all of one round, in the order in which the clients answer.
            model: the global model, not to be changed; ``None`` when the first model is asked for.
            wanted: how many answers end the round; those of the clients that come first. All, where nobody says.
            tick: called with the number of clients that are done and whose answers will come in a sum.
        """

    def close(self) -> None:
        """End what was started."""


class Desk:
    """Does one client's task, whatever the client's code does.

    Args:
        plan: the configuration of the run.
        strategy: the strategy of the run.
        learner: does the clients' work; one for all, because a learner keeps nothing that matters between calls.
        data: each client's dataset by name.
        masked: whether each client's answer goes under masks of its own.
    """

    def __init__(self, plan: Plan, strategy: Strategy, learner: Learner, data: Mapping[str, Any], *, masked: bool = False) -> None:
        self.plan, self.strategy, self.learner, self.data = plan, strategy, learner, data
        self._masked = masked
        # A learner recognises prepared data by identity, so the parts of a dataset are cut once, not once a round.
        self.portion = lru_cache(maxsize=keep(data))(self._cut)

    def apart(self, phase: Phase) -> bool:
        """Whether the answers of a phase must be seen one by one."""
        evaluate = self.plan.evaluate
        shown = phase is Phase.EVALUATE and evaluate.per_site and not self.plan.secagg.enabled
        return phase is Phase.INIT or not self.strategy.aggregator.linear or self._masked or shown

    def answer(self, task: Task, model: Vector | None) -> Answered | Initialized | Failed:
        """A client's answer or, whatever its code does, the failure a coordinator would hear of."""
        done = self.guarded(task.node, lambda: perform(task, *self._how(task), model, private=self.private(task)))
        if isinstance(done, Failed):
            return done
        if isinstance(done, FirstModel):
            return Initialized(task.node, done.schema.to_json(), model_digest(done.model), done.model)
        try:
            task.layout.check(done)
        except UpdateRejected as error:
            return Failed(task.node, Failure(Cause.REJECTED, error.what, where=error.where, hint=error.hint))
        # Nothing is stored under the digest of an answer here, and hashing would cost more than a small client's training.
        return Answered(task.node, "", done)

    def add(self, task: Task, model: Vector, total: Words) -> Failed | None:
        """Add a client's answer to a sum: the same bits as those of ``answer``, which is never written down; or its failure."""
        failed: Failed | None = self.guarded(task.node, lambda: self._add(task, model, total))
        return failed

    def _add(self, task: Task, model: Vector, total: Words) -> None:
        private = self.private(task)
        update, share = compute(task, *self._how(task), model, private=private), noise_of(task, self.plan, private)
        if not isinstance(update, FirstModel):
            task.layout.add(update, total)
        if share is not None:
            add(total[: task.layout.size], share)

    def guarded(self, node: str, work: Callable[[], Any]) -> Any:
        """The result of work, or the failure of whoever's code raised."""
        done = attempted(work)
        return Failed(node, failure_of(done)) if isinstance(done, Exception) else done

    def private(self, task: Task) -> Private | None:
        """How a client hides its rows, with all chance from the plan's seed: a simulation can be repeated, and hides nobody."""
        if self.plan.privacy is None or task.phase is not Phase.TRAIN:
            return None
        key = derived(self.plan.job.seed.to_bytes(8, "little"), f"simulation/{task.node}", task.number)
        return private_for(self.plan, task.phase, self.data[task.node], key)

    def _how(self, task: Task) -> tuple[Plan, Strategy, Learner, Any]:
        """The middle arguments of ``perform`` and ``compute``."""
        return self.plan, self.strategy, self.learner, self.portion(task.node, task.phase)

    def _cut(self, name: str, phase: Phase) -> object:
        """The part of a client's dataset that a phase may see."""
        return portion(self.plan, phase, self.data[name])


def keep(data: object) -> int:
    """How many clients' prepared data stay at hand: as many as fit into a fixed amount of memory."""
    first = attempted(lambda: next(iter(data.values()), None)) if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and isinstance(first, Exception):
        first = next(readable(data), None)
    parts = (first.x, first.y) if isinstance(first, Dataset) else getattr(first, "tensors", ())  # as torch's TensorDataset has them
    return max(2, min(KEEP, KEPT_BYTES // max(sum(part.nbytes for part in parts), 1)))


def readable(data: Mapping[str, Any]) -> Iterator[object]:
    """What the first few clients have, but for those whose data cannot be had: that is told when they are asked for an answer."""
    for name in islice(data, TRIES):
        found = attempted(partial(data.__getitem__, name))
        if not isinstance(found, Exception):
            yield found
