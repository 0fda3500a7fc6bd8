"""The server's step as pure pairs: ``init`` makes the state, ``update`` turns a mean change into a new model.

All state is in the returned slots, so what ``update`` returns is exactly what a checkpoint must hold. A rule that takes
each coordinate by itself is carried out piece by piece, so that a large model need not be in memory as often as the rule
has terms; the bits are the same.
Sources: Hsu et al. 2019 (FedAvgM); Reddi et al. 2021 (FedAdagrad, FedAdam, FedYogi).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fedscale.vector import Vector, pieces

Slots: TypeAlias = dict[str, Vector]
Step: TypeAlias = Callable[[Vector, Vector, Slots, int], tuple[Vector, Slots]]
Second: TypeAlias = Callable[[Vector, Vector], Vector]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """A pure pair.

    Args:
        slots: names of the state vectors, each of the model's shape and zero at the start.
        update: ``(delta, model, slots, round) -> (model, slots)``; ``delta`` is the mean change of the nodes, rounds
            count from 1.
        elementwise: whether each coordinate of what it returns depends on that coordinate of its arguments alone.
    """

    slots: tuple[str, ...]
    update: Step
    elementwise: bool = False

    def init(self, model: Vector) -> Slots:
        """State before the first step."""
        return {name: np.zeros(model.shape, np.float32) for name in self.slots}

    def step(self, delta: Vector, model: Vector, slots: Slots, number: int) -> tuple[Vector, Slots]:
        """``update``; an elementwise rule puts the new model in the place of ``delta``, which is used up."""
        if not (self.elementwise and delta.flags.writeable):
            return self.update(delta, model, slots, number)
        made = {name: np.empty_like(delta) for name in self.slots}
        for part in pieces(model, *slots.values()):
            delta[part], state = self.update(delta[part], model[part], {name: slot[part] for name, slot in slots.items()}, number)
            for name, slot in made.items():
                slot[part] = state[name]
        return delta, made


def sgd(lr: float = 1.0, momentum: float = 0.0) -> Optimizer:
    """``model += lr * v`` with ``v = momentum * v + delta``; plain averaging is ``sgd(1.0)``."""

    def update(delta: Vector, model: Vector, slots: Slots, _round: int) -> tuple[Vector, Slots]:
        if momentum:
            delta = np.float32(momentum) * slots["velocity"] + delta
            slots = {"velocity": delta}
        step = np.float32(lr) * delta
        return np.add(model, step, out=step), slots

    return Optimizer(("velocity",) if momentum else (), update, elementwise=True)


def _adaptive(lr: float, beta1: float, tau: float, second: Second, scale: Callable[[int], float]) -> Optimizer:
    """The common step of Reddi et al. 2021, algorithm 2, with ``second`` for the second moment."""

    def update(delta: Vector, model: Vector, slots: Slots, number: int) -> tuple[Vector, Slots]:
        first = np.float32(beta1) * slots["first"] + np.float32(1 - beta1) * delta
        moment = second(slots["second"], delta * delta)
        root: Vector = np.sqrt(moment)
        root += np.float32(tau)
        step: Vector = np.float32(lr * scale(number)) * first
        step /= root
        return np.add(model, step, out=step), {"first": first, "second": moment}

    return Optimizer(("first", "second"), update, elementwise=True)


def adam(lr: float, beta1: float, beta2: float, tau: float) -> Optimizer:
    """Adam with both bias corrections folded into the step length."""

    def corrected(t: int) -> float:
        return float(np.sqrt(1 - beta2 ** (t + 1)) / (1 - beta1 ** (t + 1)))

    return _adaptive(lr, beta1, tau, lambda v, square: np.float32(beta2) * v + np.float32(1 - beta2) * square, corrected)


def yogi(lr: float, beta1: float, beta2: float, tau: float) -> Optimizer:
    """Yogi: the second moment moves by at most ``(1 - beta2) * delta^2`` a round."""
    return _adaptive(lr, beta1, tau, lambda v, square: v - np.float32(1 - beta2) * square * np.sign(v - square), lambda _: 1.0)


def adagrad(lr: float, tau: float) -> Optimizer:
    """Adagrad: the second moment is the sum of all squares."""
    return _adaptive(lr, 0.0, tau, lambda v, square: v + square, lambda _: 1.0)
