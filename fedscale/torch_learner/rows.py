"""Which rows of a batch belong to one unit of privacy, and what a unit may weigh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of one or more whole units.

    Args:
        member: the unit of each row, from 0, shape ``(n,)``.
        units: how many units.
        part: what each row counts in its unit's loss, the mean over its rows, shape ``(n,)``.
        single: whether each row is a unit.
    """

    member: Tensor
    units: int
    part: Tensor
    single: bool

    @classmethod
    def of(cls, member: Tensor, units: int, device: torch.device | None = None) -> Rows:
        """Rows by the unit each belongs to, told on the host; every unit from 0 to ``units - 1`` has at least one."""
        single = units == len(member) and torch.equal(member, torch.arange(units))
        part = 1.0 / torch.bincount(member, minlength=units)[member]
        return cls(member.to(device), units, part.to(device), single)

    def added(self, values: Tensor) -> Tensor:
        """Sums over the rows of each unit, shape ``(units, ...)`` from ``(n, ...)``."""
        return values if self.single else values.new_zeros(self.units, *values.shape[1:]).index_add_(0, self.member, values)

    def spread(self, values: Tensor) -> Tensor:
        """Each unit's value at all its rows."""
        return values if self.single else values[self.member]

    def weights(self, norms: Tensor, clip: float) -> Tensor:
        """What scales gradients of these norms down to ``clip``; nothing of a gradient that is not finite.

        The norm is raised a little, so that rounding cannot carry a clipped gradient beyond ``clip``.
        """
        scale = (clip / (norms * (1 + 1e-6) + 1e-12)).clamp(max=1.0)
        return torch.where(torch.isfinite(norms), scale, torch.zeros_like(scale))
