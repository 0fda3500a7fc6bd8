"""Strategies: frozen values composed of an optimizer, an aggregator, transforms and a client rule; never subclasses.

Every algorithm here is a function that returns a ``Strategy``. Its arguments are validated, so the same names and types
serve Python and the ``[strategy]`` table of a plan.
Sources: McMahan et al. 2017; Hsu et al. 2019; Reddi et al. 2021; Li et al. 2020; Nguyen et al. 2022.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from importlib import import_module
from typing import Annotated, Any, Literal, ParamSpec, get_args

from pydantic import Field, ValidationError, validate_call

from fedscale import optimizers
from fedscale.aggregate import Aggregator, Each, Mean
from fedscale.errors import PlanError
from fedscale.optimizers import Optimizer, Slots, Step
from fedscale.transform import ClipNorm, Transform
from fedscale.vector import Vector

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Weighting = Literal["examples", "equal"]
P = ParamSpec("P")


@dataclass(frozen=True)
class Strategy:
    """How a federation learns.

    Args:
        optimizer: the server's step on the mean change.
        aggregator: how answers combine.
        transforms: what happens to each update before it leaves the node, and is undone on the sum.
        weighting: whether a node counts by its examples or all count the same.
        proximal: strength of the pull towards the global model during local training (FedProx's mu).
        buffer: how many answers make a round of an asynchronous run; 0 for rounds that all begin together.
        led: whether a program of the submitter's leads the run by messages, so that there are no rounds of ours.
        staleness: an answer to a model that is ``s`` rounds old counts ``(1 + s) ** -staleness``; asynchronous runs only.
        check: raises where rounds cannot be closed with it on this machine; called before a run is accepted.

    ``name`` is what plans and reports call it and ``params`` are the arguments it was made with, both set by the functions
    below alone: what is composed by hand is called ``custom``, and so is anything that ``dataclasses.replace`` makes of it.
    """

    optimizer: Optimizer
    aggregator: Aggregator = field(default_factory=Mean)
    transforms: tuple[Transform, ...] = ()
    weighting: Weighting = "examples"
    proximal: float = 0.0
    buffer: int = 0
    staleness: float = 0.0
    led: bool = False
    check: Callable[[], object] = field(default=lambda: None, compare=False, repr=False)
    name: str = field(default="custom", init=False)
    params: Mapping[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Refuse parts that no round could be closed with.

        Raises:
            PlanError: one of them.
        """
        if not isinstance(self.optimizer, Optimizer):
            what = f"the optimizer is of type {type(self.optimizer).__name__}"
            raise PlanError(what, where="Strategy", hint="make one as in fedscale.optimizers.sgd(1.0)")
        if self.weighting not in get_args(Weighting):
            raise PlanError(f"there is no weighting '{self.weighting}'", where="Strategy", hint=f"known: {', '.join(get_args(Weighting))}")
        if not (self.proximal >= 0 and self.staleness >= 0 and self.buffer >= 0):
            raise PlanError("proximal, staleness and buffer are numbers from 0 up", where="Strategy")


def _strategy(make: Callable[P, Strategy]) -> Callable[P, Strategy]:
    """Validate the arguments and note them, with the function's name, in the value it returns."""
    checked = cache(lambda: validate_call(make))
    name = make.__name__.replace("_", "")

    @wraps(make)
    def named(*args: P.args, **kwargs: P.kwargs) -> Strategy:
        try:
            value = checked()(*args, **kwargs)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            if first["type"] == "unexpected_keyword_argument":
                known = ", ".join(inspect.signature(make).parameters)
                raise PlanError(f"{name} has no setting '{place}'", where=f"strategy.{place}", hint=f"known: {known}") from None
            raise PlanError(f"{name}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}", where=f"strategy.{place}") from None
        bound = inspect.signature(make).bind(*args, **kwargs)
        # A name is no argument, so that no copy with other parts can keep it; a frozen value is given its own this way.
        object.__setattr__(value, "name", name)
        object.__setattr__(value, "params", dict(bound.arguments))
        return value

    return named


@_strategy
def fed_avg(*, lr: Positive = 1.0, weighting: Weighting = "examples", clip_norm: Positive | None = None) -> Strategy:
    """Federated averaging (McMahan et al. 2017): the weighted mean of the changes, applied with step length ``lr``."""
    return Strategy(optimizers.sgd(lr), transforms=(ClipNorm(clip_norm),) if clip_norm else (), weighting=weighting)


@_strategy
def fed_avgm(*, lr: Positive = 1.0, momentum: Fraction = 0.9) -> Strategy:
    """FedAvg with server momentum (Hsu et al. 2019)."""
    return replace(fed_avg(), optimizer=optimizers.sgd(lr, momentum))


@_strategy
def fed_adam(*, lr: Positive = 0.1, beta1: Fraction = 0.9, beta2: Fraction = 0.99, tau: Positive = 1e-3) -> Strategy:
    """Adam at the server (Reddi et al. 2021), bias-corrected."""
    return replace(fed_avg(), optimizer=optimizers.adam(lr, beta1, beta2, tau))


@_strategy
def fed_yogi(*, lr: Positive = 0.01, beta1: Fraction = 0.9, beta2: Fraction = 0.99, tau: Positive = 1e-3) -> Strategy:
    """Yogi at the server (Reddi et al. 2021)."""
    return replace(fed_avg(), optimizer=optimizers.yogi(lr, beta1, beta2, tau))


@_strategy
def fed_adagrad(*, lr: Positive = 0.1, tau: Positive = 1e-3) -> Strategy:
    """Adagrad at the server (Reddi et al. 2021)."""
    return replace(fed_avg(), optimizer=optimizers.adagrad(lr, tau))


@_strategy
def fed_prox(*, mu: Positive = 0.01, lr: Positive = 1.0) -> Strategy:
    """FedAvg with a proximal term of strength ``mu`` in every local loss (Li et al. 2020)."""
    return replace(fed_avg(lr=lr), proximal=mu)


@_strategy
def fed_buff(*, lr: Positive = 1.0, buffer: Count = 10, staleness: NotNegative = 0.5, weighting: Weighting = "examples") -> Strategy:
    """Asynchronous FedAvg (FedBuff, Nguyen et al. 2022): ``clients.select`` are always at work, every ``buffer`` answers are a round.

    An answer to a model that is ``s`` rounds old counts ``1 / (1 + s) ** staleness``. In simulations only, so far.
    """
    return replace(fed_avg(lr=lr, weighting=weighting), buffer=buffer, staleness=staleness)


@_strategy
def flower(
    *,
    of: str = "FedAvg",
    api: Literal["messages", "legacy"] = "messages",
    arguments: Mapping[str, bool | int | float | str] | None = None,
    weighting: Weighting = "examples",
) -> Strategy:
    """A strategy of Flower's by its name, such as ``FedMedian``, which combines the answers that it sees one by one.

    Args:
        of: its name in ``flwr.serverapp.strategy``, or for ``legacy`` in ``flwr.server.strategy``.
        api: which of the two.
        arguments: its own.
        weighting: as in ``Strategy``.
    """
    given = dict(arguments or {})

    def step() -> Step:
        # Of all who read a plan, only the one who closes its rounds needs flwr.
        made: Step = import_module("fedscale.flower").step(of, api, given)
        return made

    def update(delta: Vector, model: Vector, slots: Slots, number: int) -> tuple[Vector, Slots]:
        return step()(delta, model, slots, number)

    proximal = float(given.get("proximal_mu", 0.0))
    return Strategy(Optimizer((), update), aggregator=Each(), weighting=weighting, proximal=proximal, check=step)


@_strategy
def led(*, code: str = "") -> Strategy:  # noqa: ARG001 - a part of the plan, and so of its digest
    """Whatever the program does that leads the run, and sees each answer by itself: a Flower app's own ServerApp; ``fedscale run lead``.

    Args:
        code: SHA-256 of that program and its settings, in hex: with another one nobody goes on with the run.
    """
    return Strategy(optimizers.sgd(1.0), led=True)


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    f.__name__.replace("_", ""): f for f in (fed_avg, fed_avgm, fed_adam, fed_yogi, fed_adagrad, fed_prox, fed_buff, flower, led)
}
