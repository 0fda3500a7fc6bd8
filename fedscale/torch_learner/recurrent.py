"""LSTMs and GRUs of many clients at once, for which torch has no kernel: a step through time is one for all clients.

The kernels have the clients first in every tensor; for one client they compute as for many. Both directions are functions of
their own, so that ``torch.func.vmap`` hands each of them all clients in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedscale.torch_learner import gru, lstm
from fedscale.torch_learner.lstm import Parts

Dims: TypeAlias = tuple[int | None, ...]
Function: TypeAlias = Callable[..., Parts]
BATCHED = 3
MOST_TIME = 32  # LSTMs over longer sequences gain less than nothing from 16 clients at once, see decision 0008


@dataclass(frozen=True)
class Kernel:
    """What computes a layer of many clients.

    Args:
        forward: rows, weights and biases to what the layer's user sees, followed by what ``backward`` needs.
        backward: the gradient at what the user sees, rows, weights and all that ``forward`` returned to the gradients at its arguments.
        seen: how many tensors the user sees: the states, and the cells where there are any.
        longest: how many steps through time are worth it.
    """

    forward: Function
    backward: Function
    seen: int
    longest: float


KERNELS: dict[type[nn.RNNBase], Kernel] = {
    nn.LSTM: Kernel(lstm.forward, lstm.backward, 2, MOST_TIME),
    nn.GRU: Kernel(gru.forward, gru.backward, 1, math.inf),
}


def _one(function: Function, tensors: Sequence[Tensor]) -> Parts:
    """A function of many clients for one."""
    return tuple(part.squeeze(0) for part in function(*(tensor.unsqueeze(0) for tensor in tensors)))


def _many(function: Function, clients: int, dims: Dims, tensors: Sequence[Tensor]) -> tuple[Parts, Dims]:
    """A function of many clients' tensors, of which some may be the same for all."""
    front = [tensor.expand(clients, *tensor.shape) if at is None else tensor.movedim(at, 0) for tensor, at in zip(tensors, dims, strict=True)]
    found = function(*front)
    return found, (0,) * len(found)


class Backward(torch.autograd.Function):
    """A kernel's ``backward`` of one client, or of all under ``vmap``; without a gradient of its own."""

    @staticmethod
    def forward(kernel: Kernel, *tensors: Tensor) -> Parts:
        """Of one client."""
        return _one(kernel.backward, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, dims: Dims, kernel: Kernel, *tensors: Tensor) -> tuple[Parts, Dims]:
        """Of all clients."""
        return _many(kernel.backward, info.batch_size, dims[1:], tensors)


class Layer(torch.autograd.Function):
    """A kernel's ``forward`` of one client, or of all under ``vmap``."""

    @staticmethod
    def forward(kernel: Kernel, *tensors: Tensor) -> Parts:
        """Of one client."""
        return _one(kernel.forward, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What the way back needs."""
        ctx.kernel, rows, inner, outer, *_ = inputs
        ctx.mark_non_differentiable(*output[ctx.kernel.seen :])
        ctx.save_for_backward(rows, inner, outer, *output)

    @staticmethod
    def vmap(info: Any, dims: Dims, kernel: Kernel, *tensors: Tensor) -> tuple[Parts, Dims]:
        """Of all clients."""
        return _many(kernel.forward, info.batch_size, dims[1:], tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *wanted: Any) -> tuple[Tensor | None, ...]:
        """The gradients of rows, weights and biases."""
        return None, *Backward.apply(ctx.kernel, *wanted[: ctx.kernel.seen], *ctx.saved_tensors)


def handles(part: nn.RNNBase) -> bool:
    """Whether a recurrent layer is one that can be computed for many clients."""
    plain = type(part) in KERNELS and "forward" not in vars(part) and not (part.bidirectional or part.proj_size)
    return plain and (part.num_layers == 1 or not part.dropout)


def install(module: nn.Module) -> None:
    """Let a module's recurrent layers, all of which are handled, compute by the kernels for many clients."""
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.forward = partial(_through_time, part)


def _through_time(layers: nn.RNNBase, rows: object, state: object = None) -> tuple[Tensor, Tensor | Parts]:
    """What ``nn.LSTM`` and ``nn.GRU`` compute for batches of sequences that begin with a state of zeros.

    Raises:
        TypeError: a state is given, the rows are packed, no batch or too long.
    """
    kernel = KERNELS[type(layers)]
    if state is not None or not isinstance(rows, Tensor) or rows.ndim != BATCHED or rows.shape[layers.batch_first] > kernel.longest:
        raise TypeError("recurrent layers of many clients take batches of short sequences and begin with zeros")
    values = rows.transpose(0, 1) if layers.batch_first else rows
    ends = list[Parts]()
    for at in range(layers.num_layers):
        inner, outer = getattr(layers, f"weight_ih_l{at}"), getattr(layers, f"weight_hh_l{at}")
        none = outer.new_zeros(len(outer))
        biases = (getattr(layers, f"bias_ih_l{at}"), getattr(layers, f"bias_hh_l{at}")) if layers.bias else (none, none)
        seen = Layer.apply(kernel, values, inner, outer, *biases)[: kernel.seen]
        values = seen[0]
        ends.append(tuple(part[-1] for part in seen))
    last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
    return values.transpose(0, 1) if layers.batch_first else values, last if len(last) > 1 else last[0]
