"""Linear layers of many clients at once.

After some steps of SGD the weights of client ``k`` are ``W_k = a W + sum_j c_j D_kj^T X_kj``: the global weights ``W``, and
for each step the layer's inputs ``X`` and the gradients ``D`` at its outputs. So ``x W_k^T`` is one product with the shared
weights for all clients and small products with what each has seen, and weights of a client need never be written down.
Momentum, weight decay and FedProx's pull are linear in weights and gradients and change only the numbers ``a`` and
``c``. This is exact, and fast where a client sees fewer rows than the layer is wide; other layers keep their own weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fedscale.learner import LocalOptimizer
from fedscale.torch_learner.chain import Dense, Elementwise
from fedscale.torch_learner.lineup import Seen, pairs

Product: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# Products that cancel to this part of what they are lose digits of float32; the norm of a change is to keep five.
MOST_LOST = 100
# What a processor does in a second, roughly; only the ratios matter, and only for which form a layer takes.
LARGE_PRODUCTS, SMALL_PRODUCTS, MEMORY = 100e9, 30e9, 20e9


@dataclass(frozen=True)
class Pace:
    """The steps that every client of a block takes.

    Args:
        steps: how many.
        batch: rows of each, padding included.
        optimizer: SGD.
        proximal: FedProx's mu.
    """

    steps: int
    batch: int
    optimizer: LocalOptimizer
    proximal: float

    def course(self) -> tuple[list[float], list[list[float]]]:
        """``a_t`` and ``c_tj`` for the weights after ``t`` steps, ``W_t = a_t W + sum_j c_tj G_j``, for ``t`` from 0."""
        lr, momentum, decay = self.optimizer.lr, self.optimizer.momentum, self.optimizer.weight_decay
        a, c = [1.0], [[0.0] * self.steps]
        base, parts = 0.0, [0.0] * self.steps
        for step in range(self.steps):
            base = momentum * base + decay * a[-1] + self.proximal * (a[-1] - 1)
            parts = [momentum * v + (decay + self.proximal) * w for v, w in zip(parts, c[-1], strict=True)]
            parts[step] += 1.0
            a.append(a[-1] - lr * base)
            c.append([w - lr * v for w, v in zip(c[-1], parts, strict=True)])
        return a, c


class Layer(Protocol):
    """A linear layer of a block of clients, at one step after the other."""

    def forward(self, step: int, rows: Tensor) -> Tensor:
        """Outputs ``(clients, batch, out)`` for inputs ``(clients, batch, in)``."""

    def backward(self, step: int, gradient: Tensor, *, inwards: bool) -> Tensor | None:
        """Take a step down the gradient at the outputs; the gradient at the inputs, where it is wanted."""

    def squares(self) -> Tensor:
        """The squared norm of each client's change, once all steps are taken, float64 of shape ``(clients,)``."""

    def change(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """How weight and bias have changed, summed over the clients with these weights, shape ``(clients,)``, once all steps are taken."""


class Rectifier:
    """The positive part, in place; the most frequent activation, for which autograd would cost more than the function."""

    def __init__(self) -> None:
        self._outer = torch.empty(0)

    def forward(self, step: int, rows: Tensor) -> Tensor:  # noqa: ARG002 - as a layer
        """The function's values."""
        self._outer = rows.relu_()
        return self._outer

    def backward(self, step: int, gradient: Tensor, *, inwards: bool) -> Tensor | None:  # noqa: ARG002 - as a layer
        """The gradient at its arguments."""
        return torch.ops.aten.threshold_backward(gradient, self._outer, 0) if inwards else None


class Activation:
    """An elementwise function of all clients' values.

    Args:
        function: what is applied.
    """

    def __init__(self, function: Elementwise) -> None:
        self._function = function
        self._inner = self._outer = torch.empty(0)

    def forward(self, step: int, rows: Tensor) -> Tensor:  # noqa: ARG002 - as a layer
        """The function's values."""
        with torch.enable_grad():
            self._inner = rows.detach().requires_grad_()
            self._outer = self._function(self._inner)
        return self._outer.detach()

    def backward(self, step: int, gradient: Tensor, *, inwards: bool) -> Tensor | None:  # noqa: ARG002 - as a layer
        """The gradient at its arguments."""
        return torch.autograd.grad(self._outer, self._inner, gradient)[0] if inwards else None


Function: TypeAlias = Rectifier | Activation


class Bias:
    """The bias of each client; it is small, so everybody has one."""

    def __init__(self, bias: Tensor | None, clients: int, pace: Pace) -> None:
        self._first, self._pace = bias, pace
        self._own = torch.empty(clients, 0) if bias is None else bias.expand(clients, -1).clone()
        self._speed = torch.zeros_like(self._own)

    def added(self, outputs: Tensor) -> Tensor:
        """Outputs with the bias, in place."""
        return outputs if self._first is None else outputs.add_(self._own.unsqueeze(1))

    def descend(self, gradient: Tensor) -> None:
        """Take a step down the gradient at the outputs."""
        if self._first is not None:
            descend(self._own, self._speed, gradient.sum(1), self._first, self._pace)

    def squares(self) -> Tensor:
        """The squared norm of each client's change."""
        return squares(self._moved)

    def change(self, weights: Tensor) -> Tensor:
        """How the bias has changed, summed with these weights."""
        return weights @ self._moved

    @cached_property
    def _moved(self) -> Tensor:
        """The changes, in the place of what each client has."""
        return self._own if self._first is None else self._own.sub_(self._first)


def descend(own: Tensor, speed: Tensor, gradient: Tensor, first: Tensor, pace: Pace) -> None:
    """A step of SGD, in place; ``first`` is where the weights began."""
    wanted = pace.optimizer
    if wanted.weight_decay:
        gradient = gradient.add(own, alpha=wanted.weight_decay)
    if pace.proximal:
        gradient = gradient.add(own - first, alpha=pace.proximal)
    if wanted.momentum:
        gradient = speed.mul_(wanted.momentum).add_(gradient)
    own.add_(gradient, alpha=-wanted.lr)


class Own:
    """A layer of which every client has weights of its own; for layers so small that they stay in the cache."""

    def __init__(self, weight: Tensor, bias: Tensor | None, clients: int, pace: Pace, seen: Seen | None) -> None:
        self._first, self._pace, self._bias, self._seen = weight, pace, Bias(bias, clients, pace), seen
        self._own = weight.expand(clients, -1, -1).clone()
        self._speed = torch.zeros_like(self._own) if pace.optimizer.momentum else torch.empty(0)
        self._rows = torch.empty(0)

    def forward(self, step: int, rows: Tensor) -> Tensor:
        """One small product a client."""
        self._rows = rows if self._seen is None else self._seen.step(step * self._pace.batch, (step + 1) * self._pace.batch)
        return self._bias.added(torch.bmm(self._rows, self._own.transpose(1, 2)))

    def backward(self, step: int, gradient: Tensor, *, inwards: bool) -> Tensor | None:  # noqa: ARG002 - a layer
        """Move the client's weights."""
        back, wanted = torch.bmm(gradient, self._own) if inwards else None, self._pace.optimizer
        if wanted.momentum or wanted.weight_decay or self._pace.proximal:
            descend(self._own, self._speed, torch.bmm(gradient.transpose(1, 2), self._rows), self._first, self._pace)
        else:
            self._own.baddbmm_(gradient.transpose(1, 2), self._rows, alpha=-wanted.lr)
        self._bias.descend(gradient)
        return back

    def squares(self) -> Tensor:
        """Of each client's difference."""
        return squares(self._moved) + self._bias.squares()

    def change(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the differences."""
        return (weights @ self._moved.flatten(1)).view_as(self._first), self._bias.change(weights)

    @cached_property
    def _moved(self) -> Tensor:
        """The differences, in the place of what each client has."""
        return self._own.sub_(self._first)


class Shared:
    """A layer whose client weights are never written down.

    Args:
        weight: the global weights ``(out, in)``.
        bias: the global bias ``(out,)``, if there is one.
        clients: how many.
        pace: the steps.
        product: ``(x, w) -> x @ w.T``.
        seen: all inputs where they are known beforehand.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, clients: int, pace: Pace, product: Product, seen: Seen | None) -> None:
        self._weight, self._pace, self._product, self._bias = weight, pace, product, Bias(bias, clients, pace)
        self._a, c = pace.course()
        self._c = torch.tensor(c).repeat_interleave(pace.batch, 1)
        count, (outputs, inputs) = pace.steps * pace.batch, weight.shape
        self._seen, self._gradients = seen, weight.new_empty(clients, count, outputs)
        self._rows = weight.new_empty(clients, count, inputs) if seen is None else seen.rows
        if seen is None:
            self._outputs = torch.empty_like(self._gradients)
        else:
            self._outputs = seen.taken(product(seen.rows.view(-1, inputs), weight).view(clients, -1, outputs))

    def forward(self, step: int, rows: Tensor) -> Tensor:
        """The shared product, and what the client's own steps add to it."""
        begin, end = step * self._pace.batch, (step + 1) * self._pace.batch
        if self._seen is not None:
            outputs = self._outputs[:, begin:end]
        else:
            self._rows[:, begin:end] = rows
            outputs = self._outputs[:, begin:end] = self._product(rows.reshape(-1, rows.shape[2]), self._weight).view(*rows.shape[:2], -1)
        if not step:
            return self._bias.added(outputs.clone())
        alike = torch.bmm(rows, self._rows[:, :begin].transpose(1, 2)) if self._seen is None else self._seen.alike(begin, end)
        return self._bias.added(torch.baddbmm(outputs, alike * self._c[step, :begin], self._gradients[:, :begin], beta=self._a[step]))

    def backward(self, step: int, gradient: Tensor, *, inwards: bool) -> Tensor | None:
        """Keep the gradient: that is the step."""
        begin, end = step * self._pace.batch, (step + 1) * self._pace.batch
        self._gradients[:, begin:end] = gradient
        self._bias.descend(gradient)
        if not inwards:
            return None
        back = self._product(gradient.reshape(-1, gradient.shape[2]), self._weight.t()).view(*gradient.shape[:2], -1)
        if not step:
            return back
        alike = torch.bmm(gradient, self._gradients[:, :begin].transpose(1, 2)).mul_(self._c[step, :begin])
        return torch.baddbmm(back, alike, self._rows[:, :begin], beta=self._a[step])

    def squares(self) -> Tensor:
        """From the products of a client's rows with each other and of their gradients: the norm of ``E^T X`` is that of ``X X^T * E E^T``."""
        products = (pairs(self._rows) if self._seen is None else self._seen.pairs) * pairs(self._pulls)
        if (products.abs().sum((1, 2)) > MOST_LOST * products.sum((1, 2))).any():
            products = pairs(self._rows.double()) * pairs(self._pulls.double())
        found = products.sum((1, 2), dtype=torch.float64)
        if (shrunk := self._a[-1] - 1) != 0:
            found += 2 * shrunk * ((self._gradients * self._outputs).sum(2, dtype=torch.float64) @ self._c[-1].double())
            found += shrunk**2 * squares(self._weight.unsqueeze(0))
        return found.clamp_min_(0) + self._bias.squares()

    def change(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """One product over all rows of all clients."""
        pulls = (self._pulls * weights.view(-1, 1, 1)).flatten(0, 1)
        moved = self._product(pulls.t(), self._rows.view(-1, self._weight.shape[1]).t())
        if self._a[-1] != 1:
            moved.add_(self._weight, alpha=(self._a[-1] - 1) * float(weights.sum()))
        return moved, self._bias.change(weights)

    @cached_property
    def _pulls(self) -> Tensor:
        """By how much of each of its rows a client's weights have moved in the end, ``(clients, rows, out)``."""
        pulls = self._gradients * self._c[-1].unsqueeze(1)
        return pulls if self._seen is None else self._seen.returned(pulls).view(*self._rows.shape[:2], -1)


def squares(parts: Tensor) -> Tensor:
    """The squared norm of each client's part, ``(clients, ...)``, summed in float64."""
    norms: Tensor = torch.linalg.vector_norm(parts.flatten(1), dim=1, dtype=torch.float64)
    return norms.square_()


def factors(layer: Dense, pace: Pace, *, first: bool) -> bool:
    """Whether a layer is faster without weights of each client, by the work and the memory traffic of both forms."""
    rows, size, width = pace.steps * pace.batch, layer.inputs * layer.outputs, layer.inputs + layer.outputs
    products = (4 if first else 6) * rows * size
    shared = products / LARGE_PRODUCTS + (2 if first else 4) * rows * rows * width / SMALL_PRODUCTS
    own = products / SMALL_PRODUCTS + 4 * size * (2 + 4 * pace.steps) / MEMORY
    return shared < own
