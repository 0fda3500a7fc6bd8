"""Training that hides each record or patient: DP-SGD at one site, and the sum of clipped gradients for noise in shares.

The sample of each step is drawn here and stays secret; the number by which a noisy sum is divided is the plan's. Optimiser steps,
FedProx's pull and weight decay come after the noise and cost nothing. Buffers never leave: they go back to where they began.
Source: Abadi et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedscale.errors import AppError
from fedscale.learner import Private, Training
from fedscale.privacy import noise
from fedscale.privacy.lots import chosen, derived, secret
from fedscale.torch_learner.clipping import Objective, OneByOne, Way
from fedscale.torch_learner.examples import Examples
from fedscale.torch_learner.resident import Resident, tensor_of
from fedscale.torch_learner.rows import Rows
from fedscale.torch_learner.steps import Steps
from fedscale.vector import Arrays

Batch = Callable[[Tensor], tuple[Tensor, Tensor]]


class Units:
    """Which rows belong to each unit.

    Args:
        member: the unit of each row, from 0 and without gaps, shape ``(n,)``.
    """

    def __init__(self, member: npt.NDArray[np.int64]) -> None:
        self._order = np.argsort(member, kind="stable")
        self._ends = np.cumsum(np.bincount(member))
        self.count = len(self._ends)

    @classmethod
    def of(cls, groups: npt.NDArray[np.generic] | None, rows: int) -> Units:
        """Units by group, or each row by itself where there are none."""
        return cls(np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1))

    def rows(self, unit: int) -> npt.NDArray[np.int64]:
        """The rows of a unit."""
        return self._order[0 if unit == 0 else self._ends[unit - 1] : self._ends[unit]]

    def pieces(self, units: npt.NDArray[np.int64], most: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The rows of some units and the unit of each, from 0, in pieces of at most so many rows or of one unit."""
        piece: list[npt.NDArray[np.int64]] = []
        for unit in units.tolist():
            rows = self.rows(unit)
            if piece and sum(map(len, piece)) + len(rows) > most:
                yield _joined(piece)
                piece = []
            piece.append(rows)
        if piece:
            yield _joined(piece)


def _joined(piece: list[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.concatenate(piece), np.repeat(np.arange(len(piece)), [len(rows) for rows in piece])


class PrivateSteps:
    """Noisy gradients of a site's units.

    Args:
        objective: what is summed.
        way: how.
        batch: features and targets of some rows, on the model's device.
        units: which rows belong together.
        private: clip, noise and sampling.
    """

    def __init__(self, objective: Objective, way: Way, batch: Batch, units: Units, private: Private) -> None:
        self._objective, self._way, self._batch, self._units, self._private = objective, way, batch, units, private
        self._secret = secret(private.key)
        self.steps = private.steps

    def summed(self, step: int) -> list[Tensor]:
        """The sum of the clipped gradients of the units that a step draws, without noise; zeros where it draws nobody."""
        drawn = chosen(self._units.count, self._private.sampling_rate, derived(self._secret, "sample", step))
        total = [torch.zeros_like(parameter) for parameter in self._objective.trained]
        for rows, member in self._units.pieces(drawn, self._way.most):
            features, targets = self._batch(torch.from_numpy(rows))
            owned = Rows.of(torch.from_numpy(member), int(member[-1]) + 1, features.device)
            torch._foreach_add_(total, self._clipped(features, targets, owned))
        return total

    def _clipped(self, features: Tensor, targets: Tensor, rows: Rows) -> list[Tensor]:
        """The sum over a piece of a sample."""
        with suppress(AppError):  # a model that takes another path for these rows
            found = self._way.clipped(features, targets, rows, self._private.clip)
            # One question, for a GPU has to be waited for; sums are clipped, so a norm that is not finite has no other reason.
            if torch.isfinite(torch.stack(torch._foreach_norm(found)).sum()):  # noqa: SLF001 - torch documents it so
                return found
        # A unit whose gradient is not finite counts nothing, which only this way can do.
        return OneByOne(self._objective).clipped(features.detach(), targets, rows, self._private.clip)

    def noisy(self, step: int) -> list[Tensor]:
        """The same with noise, divided by the expected number of units."""
        total, private = self.summed(step), self._private
        drawn = noise.gaussian(sum(each.numel() for each in total), private.noise_multiplier * private.clip, derived(self._secret, "noise", step))
        parts = torch.from_numpy(np.asarray(drawn, np.float32)).to(total[0].device).split([each.numel() for each in total])
        return [(each + part.view(each.shape)) / private.expected for each, part in zip(total, parts, strict=True)]


def descend(resident: Resident, start: Arrays, noisy: PrivateSteps, steps: Steps, progress: Callable[[float], None]) -> Arrays:
    """The model after all noisy steps from ``start``; what is no parameter is as it was there."""
    for step in range(noisy.steps):
        steps.follow(noisy.noisy(step))
        progress((step + 1) / noisy.steps)
    parameters = dict(resident.module.named_parameters())
    with torch.no_grad():
        for name, entry in resident.shared.items():
            if name not in parameters:
                entry.copy_(tensor_of(start[name]))
    return resident.arrays()


def gradient(resident: Resident, private: Private, noisy: PrivateSteps, training: Training) -> Arrays:
    """The change that one step of all sites makes of this site's clipped gradients, by tensor name, still without noise."""
    owners = {id(parameter): name for name, parameter in resident.module.named_parameters() if parameter.requires_grad}
    changes = dict(zip(owners.values(), noisy.summed(0), strict=True))
    factor = -training.optimizer.lr / private.expected
    return {
        name: (changes[name] * factor if name in changes else torch.zeros_like(entry)).to("cpu", torch.float32).numpy()
        for name, entry in resident.shared.items()
    }


def members(groups: npt.NDArray[np.generic] | None, examples: Examples, unit: str) -> Units:
    """The units of a prepared dataset."""
    return Units.of(groups if unit == "patient" else None, len(examples))
