"""What a user writes: a declarative ``App``, or anything with one method, a ``Learner``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from fedscale.errors import AppError
from fedscale.metrics import Sums
from fedscale.tables import Section
from fedscale.vector import Arrays


class Phase(StrEnum):
    """What a node is asked to do: make the first model, train it, evaluate it, or answer a message of a led run."""

    INIT = "init"
    TRAIN = "train"
    EVALUATE = "evaluate"
    MESSAGE = "message"


class LocalOptimizer(Section):
    """The optimiser of local training, by torch's names."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)


class Training(Section):
    """How a node trains in one round.

    ``epochs`` passes over the local data in batches of ``batch_size``, at most ``max_steps`` steps; ``device`` is
    ``auto`` (CUDA when present), ``cpu`` or ``cuda``; ``amp`` turns on mixed precision.
    """

    epochs: int = Field(1, ge=1, le=10_000)
    batch_size: int = Field(32, ge=1)
    max_steps: int | None = Field(None, ge=1)
    optimizer: LocalOptimizer = LocalOptimizer()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: bool = False


@dataclass(frozen=True, slots=True)
class Private:
    """How a piece of training must hide each record or patient; worked out by the site itself.

    Args:
        unit: whose presence is hidden: ``record``, or ``patient`` for all rows of one group; ``node`` is no business of a learner.
        way: ``dpsgd`` trains with noise, ``union`` returns the sum of clipped gradients, which gets its noise later.
        clip: largest L2 norm of a unit's gradient.
        noise_multiplier: standard deviation of the noise over the clip.
        sampling_rate: chance of each unit to be in a step, drawn here and kept secret.
        steps: how many.
        expected: units of a step by which its noisy sum is divided; the plan's number and not the site's.
        key: where chance comes from, so that a simulation can be repeated; ``None``, as in every deployment, takes the machine's.
    """

    unit: Literal["record", "patient", "node"]
    way: Literal["dpsgd", "union", "fedavg", "ftrl"]
    clip: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    expected: float
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Work:
    """One request to a learner.

    Args:
        phase: what to do.
        number: the round, from 1; 0 for the first model.
        seed: for all randomness of this piece of work; equal in simulation and deployment.
        arrays: the global model by name, read-only float32 views; ``None`` when the first model is asked for.
        data: the part of the site's dataset for this phase.
        training: how to train.
        metrics: names of the metrics to sum when evaluating.
        proximal: FedProx's mu; 0 means none.
        progress: call with a fraction in [0, 1] to show life on long work.
        private: how this training must hide records or patients; ``None`` where the plan does not ask for it.
    """

    phase: Phase
    number: int
    seed: int
    arrays: Arrays | None
    data: Any
    training: Training
    metrics: tuple[str, ...] = ()
    proximal: float = 0.0
    progress: Callable[[float], None] = lambda _: None
    private: Private | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a learner returns.

    Args:
        arrays: the first or the locally trained model by name; ``None`` after evaluation.
        examples: number of examples trained or evaluated on.
        metrics: *sums* over those examples by metric name, shape ``(width,)`` each (``loss``: the summed loss).
        private: the ``Work.private`` that the training has kept to; an answer without it is not sent where privacy is asked for.
    """

    arrays: Arrays | None
    examples: int
    metrics: Mapping[str, Sums] = field(default_factory=dict)
    private: Private | None = None


@runtime_checkable
class Learner(Protocol):
    """Anything that can do a piece of ``Work``; keeps no state that matters between calls.

    One that keeps to ``Work.private`` says so with a method ``require_private(unit)``, which raises ``AppError`` where its model stands
    in the way; without that method it is given no work in runs that hide records or patients.
    """

    def run(self, work: Work) -> Result:
        """Do the work. Exceptions are reported to the coordinator by type and place, never with values."""


@dataclass(frozen=True)
class App:
    """A model to be trained with torch, declared rather than programmed.

    Args:
        model: makes the module; seeded by the framework, so the same seed gives the same first model.
        loss: ``(outputs, targets) -> mean loss``, as in ``torch.nn.functional``.
        metrics: names out of ``accuracy``, ``auc``, ``brier``, or a mapping of names to functions
            ``(outputs, targets) -> one value per example``.
        prepare: turns a site's dataset into the one to train on; for scaling, encoding and the like.
    """

    model: Callable[[], Any]
    loss: Callable[[Any, Any], Any]
    metrics: Sequence[str] | Mapping[str, Callable[[Any, Any], Any]] = ()
    prepare: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """Find what every client would fail with.

        Raises:
            AppError: a part is of a wrong kind.
        """
        if isinstance(self.loss, type):
            raise AppError(f"the app's loss is the class {self.loss.__name__}", hint=f"make one: loss={self.loss.__name__}()")
        if hasattr(self.model, "state_dict") and not isinstance(self.model, type):
            why, hint = "a function is expected, so that each client begins with one of its own", "write model=lambda: ..."
            raise AppError("the app's model is a module that is made already", why=why, hint=hint)
        for part, value in {"model": self.model, "loss": self.loss, "prepare": self.prepare or callable}.items():
            if not callable(value):
                raise AppError(f"the app's {part} is of type {type(value).__name__}", why="a function is expected")
        _require_metrics(self.metrics)


def _require_metrics(metrics: object) -> None:
    """Refuse what names no metrics."""
    if not isinstance(metrics, Sequence | Mapping) or not all(isinstance(name, str) for name in metrics):
        why = "names out of accuracy, auc, brier, or a mapping of names to functions are expected"
        raise AppError("the app's metrics are of a wrong type", why=why, hint='write metrics=["accuracy"], or metrics={"mine": function}')
    if isinstance(metrics, Mapping) and (odd := [name for name, measure in metrics.items() if not callable(measure)]):
        raise AppError(f"the app's metric '{odd[0]}' is no function", why="one value for each example is expected of (outputs, targets)")
