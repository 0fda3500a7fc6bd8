"""The sum of clipped gradients of a batch, by the fastest way that is right for the model at hand.

``OneByOne`` takes each unit by itself and is right for any model. ``PerRow`` (torch.func) and ``Ghost`` are faster, and are used only
where they give the same on a few rows of the site; a model whose rows have a say in each other's outputs is found out that way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fedscale.errors import AppError
from fedscale.torch_learner.ghost import Ghost
from fedscale.torch_learner.rows import Rows

Loss = Callable[[Tensor, Tensor], Tensor]

HELD = 1 << 25
MOST_ROWS = 512
PROBE = 4
CLOSE = 1e-3
# What torch raises for a model or loss that cannot be vectorised.
UNFIT = (AppError, RuntimeError, ValueError, TypeError, IndexError)


@dataclass(frozen=True)
class Objective:
    """What is summed: the module, and its checked loss on outputs and targets as they belong together, a mean over rows.

    Args:
        module: the model.
        aligned: outputs and targets as loss and metrics take them.
        loss: the app's own.
    """

    module: nn.Module
    aligned: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    loss: Loss

    @property
    def trained(self) -> list[nn.Parameter]:
        """What has gradients."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]


class Way(Protocol):
    """One way to sum clipped gradients."""

    name: str
    most: int

    def clipped(self, features: Tensor, targets: Tensor, rows: Rows, clip: float) -> list[Tensor]:
        """The sum of the units' gradients, each scaled down to a norm of at most ``clip``; at most ``most`` rows, or one unit."""


class OneByOne:
    """Each row and each unit by itself: slow, and right for whatever a model does."""

    name, most = "one by one", MOST_ROWS

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def clipped(self, features: Tensor, targets: Tensor, rows: Rows, clip: float) -> list[Tensor]:
        trained = self._objective.trained
        summed = [torch.zeros_like(parameter) for parameter in trained]
        for unit in range(rows.units):
            own = torch.nonzero(rows.member == unit).flatten()
            losses = [self._objective.loss(*self._objective.aligned(self._objective.module(features[at]), targets[at])) for at in own.split(1)]
            found: tuple[Tensor | None, ...] = torch.autograd.grad(torch.stack(losses).mean(), trained, allow_unused=True)
            gradients = [torch.zeros_like(into) if each is None else each for each, into in zip(found, summed, strict=True)]
            norm = torch.stack([each.norm() for each in gradients]).norm()
            if torch.isfinite(norm):
                torch._foreach_add_(summed, torch._foreach_mul(gradients, rows.weights(norm, clip)))  # noqa: SLF001 - torch documents it so
        return summed


class Vectorized:
    """The gradient of every row by ``torch.func``; for layers that cannot be taken apart."""

    name = "per row"

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        held = sum(parameter.numel() for parameter in objective.trained)
        self.most = max(1, min(MOST_ROWS, HELD // held))

    def clipped(self, features: Tensor, targets: Tensor, rows: Rows, clip: float) -> list[Tensor]:
        module = self._objective.module
        state = {name: parameter.detach() for name, parameter in module.named_parameters()}
        trained = {name: state[name] for name, parameter in module.named_parameters() if parameter.requires_grad}

        def loss(own: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
            outputs = functional_call(module, {**state, **own}, (row[None],))
            return self._objective.loss(*self._objective.aligned(outputs, target[None]))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about kernels without a rule of their own
            each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(trained, features, targets)
        with torch.no_grad():
            units = [rows.added(gradients.flatten(1) * rows.part[:, None]) for gradients in each.values()]
            weights = rows.weights(torch.stack([unit.square().sum(1) for unit in units]).sum(0).sqrt(), clip)
            return [(weights @ unit).view_as(into) for unit, into in zip(units, trained.values(), strict=True)]


class Apart:
    """Ghost clipping; see ``fedscale.torch_learner.ghost``."""

    name = "ghost"

    def __init__(self, objective: Objective) -> None:
        self._objective, self._ghost = objective, Ghost(objective.module)
        self.most = max(1, min(MOST_ROWS, HELD // max(self._ghost.each, 1)))

    def clipped(self, features: Tensor, targets: Tensor, rows: Rows, clip: float) -> list[Tensor]:
        return self._ghost.clipped(lambda outputs: self._losses(outputs, targets), features, rows, clip)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row by itself, whatever the loss does with several."""
        outputs, wanted = self._objective.aligned(outputs, targets)
        plain = PLAIN.get(self._objective.loss)
        if plain is not None:
            return plain(outputs, wanted, reduction="none").reshape(len(wanted), -1).mean(1)
        return vmap(lambda row, target: self._objective.loss(row[None], target[None]))(outputs, wanted)


PLAIN: dict[Any, Callable[..., Tensor]] = {
    each: each for each in (functional.cross_entropy, functional.binary_cross_entropy_with_logits, functional.mse_loss)
}


def way_for(objective: Objective, features: Tensor, targets: Tensor) -> Way:
    """The fastest way that agrees with ``OneByOne`` on a few rows, alone and as one unit.

    Which way it is depends on the model, and on rows only by their shapes and by rounding; nothing of it leaves.
    """
    slow = OneByOne(objective)
    training = [part for part in objective.module.modules() if part.training]
    # Without dropout, so that two passes are alike.
    objective.module.eval()
    try:
        for make in (Apart, Vectorized):
            if _agrees(make, slow, objective, features[:PROBE], targets[:PROBE]):
                return make(objective)
    finally:
        for part in training:
            part.training = True
    return slow


def _agrees(make: Callable[[Objective], Way], slow: OneByOne, objective: Objective, features: Tensor, targets: Tensor) -> bool:
    """Whether a way does the same as one by one; also with a clip so low that every unit counts the same."""
    count = len(targets)
    for member in (torch.arange(count), torch.arange(count) // 2):
        rows = Rows.of(member, int(member.max()) + 1, features.device)
        try:
            fast = make(objective)
            for clip in (1e9, 1e-3):
                if not _close(fast.clipped(features.clone(), targets, rows, clip), slow.clipped(features.clone(), targets, rows, clip)):
                    return False
        except UNFIT:
            return False
    return True


def _close(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two sums are equal up to rounding."""
    one, other = (torch.cat([each.flatten() for each in sums]) for sums in (ones, others))
    return bool((one - other).norm() <= CLOSE * other.norm().clamp(min=1e-9))
