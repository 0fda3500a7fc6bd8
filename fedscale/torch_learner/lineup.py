"""The rows of many clients side by side, as the steps of all of them take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedscale.sampling import Shuffle

Orders: TypeAlias = npt.NDArray[np.int64]


def pairs(rows: Tensor) -> Tensor:
    """The products of each client's rows with each other: ``(clients, rows, rows)`` from ``(clients, rows, n)``."""
    return torch.bmm(rows, rows.transpose(1, 2))


@dataclass(frozen=True)
class Once:
    """Rows as they lie in the order of the steps; one that several steps take lies there several times.

    Args:
        rows: shape ``(clients, steps * batch, in)``.
        whole: whether all products of the rows will be asked for; those with earlier rows are then taken from them.
    """

    rows: Tensor
    whole: bool = False

    @cached_property
    def pairs(self) -> Tensor:
        """The products of the rows with each other, as they lie."""
        return pairs(self.rows)

    def taken(self, values: Tensor) -> Tensor:
        """Values of each row, ``(clients, rows, n)``, in the order of the steps."""
        return values

    def step(self, begin: int, end: int) -> Tensor:
        """The rows of a step, which takes the places from ``begin`` to ``end``."""
        return self.rows[:, begin:end]

    def alike(self, begin: int, end: int) -> Tensor:
        """The products of a step's rows with all before them, ``(clients, batch, begin)``."""
        return self.pairs[:, begin:end, :begin] if self.whole else torch.bmm(self.rows[:, begin:end], self.rows[:, :begin].transpose(1, 2))

    def returned(self, values: Tensor) -> Tensor:
        """The reverse of ``taken``, for all clients in one, ``(clients * rows, n)``."""
        return values.view(-1, values.shape[2])


@dataclass(frozen=True)
class Again:
    """Rows that come in several epochs, once each as they lie at the clients, and the order in which the steps take them.

    Args:
        rows: shape ``(clients, most rows, in)``, zeros where a client has fewer.
        order: numbers of rows, shape ``(clients, steps * batch)``.
    """

    rows: Tensor
    order: Tensor

    @cached_property
    def places(self) -> Tensor:
        """The order as numbers among the rows of all clients."""
        return (self.order + torch.arange(len(self.rows)).mul_(self.rows.shape[1]).unsqueeze(1)).view(-1)

    @cached_property
    def pairs(self) -> Tensor:
        """As ``Once``."""
        return pairs(self.rows)

    @cached_property
    def products(self) -> Tensor:
        """The products of the rows with each other, both in the order of the steps."""
        lying = self.taken(self.pairs)
        return lying.gather(2, self.order.unsqueeze(1).expand(-1, self.order.shape[1], -1))

    def taken(self, values: Tensor) -> Tensor:
        """As ``Once``."""
        return values.view(-1, values.shape[2]).index_select(0, self.places).view(*self.order.shape, -1)

    def step(self, begin: int, end: int) -> Tensor:
        """As ``Once``."""
        return Again(self.rows, self.order[:, begin:end]).taken(self.rows)

    def alike(self, begin: int, end: int) -> Tensor:
        """As ``Once``."""
        return self.products[:, begin:end, :begin]

    def returned(self, values: Tensor) -> Tensor:
        """As ``Once``; a row that was taken several times gets the sum."""
        into = values.new_zeros(self.rows.shape[0] * self.rows.shape[1], values.shape[2])
        return into.index_add_(0, self.places, values.view(-1, values.shape[2]))


Seen: TypeAlias = Once | Again


class Room:
    """Memory that is used again and again: what was just used is still in the cache, and new memory would have to be mapped first."""

    def __init__(self) -> None:
        self._held = torch.empty(0)

    def shaped(self, *shape: int) -> Tensor:
        """A tensor of that shape with anything in it, which the next one takes the place of."""
        count = math.prod(shape)
        if self._held.numel() < count:
            self._held = torch.empty(count)
        return self._held[:count].view(shape)


def taken(parts: Sequence[Tensor], orders: Orders, out: Tensor) -> Tensor:
    """The rows of each client in the order given, shape ``(clients, count, ...)``, written into ``out``."""
    for into, part, order in zip(out.numpy(), parts, orders, strict=True):
        part.numpy().take(order, 0, into, "clip")  # "raise" would first write elsewhere
    return out


def side_by_side(parts: Sequence[Tensor], out: Tensor) -> Tensor:
    """The rows of each client as they lie, shape ``(clients, most rows, ...)``, zeros where a client has fewer, written into ``out``."""
    for into, part in zip(out.unbind(), parts, strict=True):
        into[: len(part)] = part
        into[len(part) :] = 0
    return out


def ordered(shuffle: Shuffle, seed: int, rows: int, steps: int, batch: int) -> Orders:
    """The rows of a client's steps, epoch after epoch; where a batch is not full, its place is taken by row 0."""
    shuffle.seed(seed)
    epoch, count = -(-rows // batch) * batch, steps * batch
    if rows == count:
        return shuffle.draw(rows)
    order = np.zeros(-(-count // epoch) * epoch, np.int64)
    for begin in range(0, count, epoch):
        order[begin : begin + rows] = shuffle.draw(rows)
    return order[:count]


@lru_cache(maxsize=64)
def shares(rows: int, steps: int, batch: int) -> Tensor:
    """What each place of ``ordered`` counts in the mean of its batch; nothing where it is only filled."""
    epoch, count = -(-rows // batch) * batch, steps * batch
    last = rows % batch or batch
    share = torch.full((epoch,), 1 / batch)
    share[epoch - batch :] = 0.0
    share[epoch - batch : epoch - batch + last] = 1 / last
    return share.repeat(-(-count // epoch))[:count]
