"""Local optimiser steps over all parameters at once.

The formulas are those of ``torch.optim``, bit for bit, without its objects: making the first of them imports torch's
compiler, which takes a second of every worker's start.
"""
# ruff: noqa: SLF001 - torch documents its foreach functions under these names

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fedscale.learner import LocalOptimizer

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Steps:
    """The steps of one piece of local training.

    Args:
        parameters: what is trained.
        wanted: SGD, Adam or AdamW.
        proximal: strength mu of the pull back to where the parameters begin: the gradient of ``mu / 2 * |w - w0|^2``
            (Li et al. 2020).
    """

    def __init__(self, parameters: Sequence[Tensor], wanted: LocalOptimizer, proximal: float = 0.0) -> None:
        self.param_groups = [{"params": list(parameters)}]  # where torch's GradScaler finds the gradients
        self._parameters: list[Tensor] = list(parameters)
        self._wanted, self._proximal = wanted, proximal
        self._anchor = [parameter.detach().clone() for parameter in parameters] if proximal else []
        adaptive = wanted.name != "sgd"
        self._first = [torch.zeros_like(parameter) for parameter in parameters] if adaptive or wanted.momentum else []
        self._second = [torch.zeros_like(parameter) for parameter in parameters] if adaptive else []
        self._count = 0

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def descend(self, loss: Tensor) -> None:
        """One step down the gradient of a loss."""
        self._move(torch.autograd.grad(loss, self._parameters, allow_unused=True))

    def descend_scaled(self, loss: Tensor, scaler: torch.amp.GradScaler) -> None:
        """The same with a loss scaled up so that half floats do not vanish."""
        self.clear()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(cast("torch.optim.Optimizer", self))
        scaler.update()

    def follow(self, gradients: Sequence[Tensor]) -> None:
        """One step down gradients that somebody else has computed."""
        self._move(gradients)

    def step(self) -> None:
        """Move every parameter that has a gradient; this is what torch's GradScaler calls."""
        self._move([parameter.grad for parameter in self._parameters])

    def _move(self, found: Sequence[Tensor | None]) -> None:
        """Move the parameters for which there is a gradient."""
        wanted, gradients = self._wanted, [gradient for gradient in found if gradient is not None]
        parameters, anchor, first, second = self._parameters, self._anchor, self._first, self._second
        if len(gradients) < len(found):
            parameters, anchor, first, second = (_reached(tensors, found) for tensors in (parameters, anchor, first, second))
        self._count += 1
        with torch.no_grad():
            if anchor:
                # Not in place: autograd may hand out one tensor as the gradient of two parameters.
                gradients = list(torch._foreach_add(gradients, torch._foreach_sub(parameters, anchor), alpha=self._proximal))
            if wanted.weight_decay and wanted.name == "adamw":
                torch._foreach_mul_(parameters, 1 - wanted.lr * wanted.weight_decay)
            elif wanted.weight_decay:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=wanted.weight_decay))
            if second:
                self._adaptive(parameters, gradients, first, second)
                return
            if first:
                torch._foreach_mul_(first, wanted.momentum)
                torch._foreach_add_(first, gradients)
            torch._foreach_add_(parameters, first or gradients, alpha=-wanted.lr)

    def _adaptive(self, parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
        """Adam (Kingma and Ba 2015), with bias correction."""
        torch._foreach_lerp_(first, gradients, 1 - BETA1)
        torch._foreach_mul_(second, BETA2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETA2)
        spread = torch._foreach_sqrt(second)
        torch._foreach_div_(spread, math.sqrt(1 - BETA2**self._count))
        torch._foreach_add_(spread, EPSILON)
        torch._foreach_addcdiv_(parameters, first, spread, -self._wanted.lr / (1 - BETA1**self._count))


def _reached(tensors: Sequence[Tensor], found: Sequence[Tensor | None]) -> list[Tensor]:
    """The tensors of the parameters that have a gradient; none where there are none at all."""
    return [tensor for tensor, gradient in zip(tensors, found, strict=True) if gradient is not None] if tensors else []
