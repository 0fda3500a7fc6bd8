"""LSTMs of many clients at once, for which torch has no kernel: a step through time is one for all clients.

The kernels have the clients first in every tensor; for one client they compute as for many. Both directions are functions of
their own, so that ``torch.func.vmap`` hands each of them all clients in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Dims: TypeAlias = tuple[int | None, ...]
Halves: TypeAlias = tuple[Tensor, ...]
Kernel: TypeAlias = Callable[..., Halves]
GATES, BATCHED = 4, 3
MOST_TIME = 32  # longer sequences gain less than nothing from 16 clients at once, see decision 0008


@torch.no_grad()
def forward(rows: Tensor, inner: Tensor, outer: Tensor, bias: Tensor) -> Halves:
    """One layer through time, from a state of zeros (Hochreiter and Schmidhuber 1997, in torch's order of gates).

    Args:
        rows: inputs, shape ``(clients, time, batch, in)``.
        inner: weights of the inputs, shape ``(clients, 4 * n, in)``.
        outer: weights of the state, shape ``(clients, 4 * n, n)``.
        bias: both biases in one, shape ``(clients, 4 * n)``.

    Returns:
        The states, the cells and their tanh, each ``(clients, time, batch, n)``, and the gates, ``(clients, time, batch, 4 * n)``.
    """
    clients, time, batch, size = *rows.shape[:3], outer.shape[2]
    flat = torch.baddbmm(bias.unsqueeze(1), rows.flatten(1, 2), inner.transpose(1, 2))
    gates = flat.view(clients, time, batch, GATES * size).transpose(0, 1).contiguous()  # so that a step lies in one piece
    states, cells, bounded = (gates.new_empty(time, clients, batch, size) for _ in range(3))
    turned, before = outer.transpose(1, 2), None
    for here, cell, tanh, state in zip(gates, cells, bounded, states, strict=True):
        if before is not None:
            torch.baddbmm(here, before[0], turned, out=here)
        let, keep, new, show = here.split(size, 2)
        here[..., : 2 * size].sigmoid_()
        show.sigmoid_()
        torch.mul(let, new.tanh_(), out=cell)
        if before is not None:
            cell.addcmul_(keep, before[1])
        torch.mul(show, torch.tanh(cell, out=tanh), out=state)
        before = state, cell
    return tuple(part.transpose(0, 1) for part in (states, cells, bounded, gates))


@torch.no_grad()
def backward(wanted: Tensor, last: Tensor, rows: Tensor, inner: Tensor, outer: Tensor, *kept: Tensor) -> Halves:
    """The gradients at the arguments of ``forward``.

    Args:
        wanted: the gradient at the states, ``(clients, time, batch, n)``.
        last: that at the last cell, ``(clients, batch, n)``.
        rows, inner, outer: as ``forward`` had them.
        kept: what ``forward`` returned.
    """
    states, cells, bounded, gates = (part.transpose(0, 1) for part in kept)
    back, cell, state = torch.empty_like(gates), last.clone(), wanted[:, -1]
    for now in reversed(range(len(gates))):
        here, tanh = gates[now], bounded[now]
        let, keep, new, show = here.split(outer.shape[2], 2)
        at_let, at_keep, at_new, at_show = back[now].split(outer.shape[2], 2)
        cell.add_(torch.ops.aten.tanh_backward(state * show, tanh))
        _sigmoid(state * tanh, show, at_show)
        _sigmoid(cell * new, let, at_let)
        torch.ops.aten.tanh_backward.grad_input(cell * let, new, grad_input=at_new)
        if not now:
            at_keep.zero_()
            break
        _sigmoid(cell * cells[now - 1], keep, at_keep)
        cell.mul_(keep)
        state = torch.baddbmm(wanted[:, now - 1], back[now], outer)
    flat, before = back.transpose(0, 1).flatten(1, 2), states[:-1].transpose(0, 1).flatten(1, 2)
    turned, later = flat.transpose(1, 2), flat[:, rows.shape[2] :].transpose(1, 2)
    return torch.bmm(flat, inner).view_as(rows), torch.bmm(turned, rows.flatten(1, 2)), torch.bmm(later, before), flat.sum(1)


def _sigmoid(gradient: Tensor, values: Tensor, out: Tensor) -> None:
    """The gradient at the arguments of a sigmoid, from that at its values."""
    torch.ops.aten.sigmoid_backward.grad_input(gradient, values, grad_input=out)


def _one(function: Kernel, tensors: Sequence[Tensor]) -> Halves:
    """A function of many clients for one."""
    return tuple(part.squeeze(0) for part in function(*(tensor.unsqueeze(0) for tensor in tensors)))


def _many(function: Kernel, clients: int, dims: Dims, tensors: Sequence[Tensor]) -> tuple[Halves, Dims]:
    """A function of many clients' tensors, of which some may be the same for all."""
    front = [tensor.expand(clients, *tensor.shape) if at is None else tensor.movedim(at, 0) for tensor, at in zip(tensors, dims, strict=True)]
    return function(*front), (0, 0, 0, 0)


class Backward(torch.autograd.Function):
    """``backward`` of one client, or of all under ``vmap``; without a gradient of its own."""

    @staticmethod
    def forward(*tensors: Tensor) -> Halves:
        """Of one client."""
        return _one(backward, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, dims: Dims, *tensors: Tensor) -> tuple[Halves, Dims]:
        """Of all clients."""
        return _many(backward, info.batch_size, dims, tensors)


class Layer(torch.autograd.Function):
    """``forward`` of one client, or of all under ``vmap``."""

    @staticmethod
    def forward(*tensors: Tensor) -> Halves:
        """Of one client."""
        return _one(forward, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What the way back needs."""
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs[:3], *output)

    @staticmethod
    def vmap(info: Any, dims: Dims, *tensors: Tensor) -> tuple[Halves, Dims]:
        """Of all clients."""
        return _many(forward, info.batch_size, dims, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: Tensor, at_cells: Tensor, *_: Any) -> Halves:
        """The gradients of rows, weights and bias; of the cells only the last is ever seen."""
        found: Halves = Backward.apply(wanted, at_cells[-1], *ctx.saved_tensors)
        return found


def handles(part: nn.RNNBase) -> bool:
    """Whether a recurrent layer is one that can be computed for many clients."""
    plain = type(part) is nn.LSTM and "forward" not in vars(part) and not (part.bidirectional or part.proj_size)
    return plain and (part.num_layers == 1 or not part.dropout)


def install(module: nn.Module) -> None:
    """Let a module's recurrent layers, all of which are handled, compute by the kernels for many clients."""
    for part in module.modules():
        if isinstance(part, nn.LSTM):
            part.forward = partial(_through_time, part)  # type: ignore[method-assign, assignment]


def _through_time(layers: nn.LSTM, rows: object, state: object = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What ``nn.LSTM`` computes for batches of short sequences that begin with a state of zeros.

    Raises:
        TypeError: a state is given, the rows are packed, no batch or too long.
    """
    if state is not None or not isinstance(rows, Tensor) or rows.ndim != BATCHED or rows.shape[layers.batch_first] > MOST_TIME:
        raise TypeError(f"an LSTM of many clients takes batches of at most {MOST_TIME} steps and begins with zeros")
    values = rows.transpose(0, 1) if layers.batch_first else rows
    states, cells = list[Tensor](), list[Tensor]()
    for at in range(layers.num_layers):
        inner, outer = getattr(layers, f"weight_ih_l{at}"), getattr(layers, f"weight_hh_l{at}")
        bias = getattr(layers, f"bias_ih_l{at}") + getattr(layers, f"bias_hh_l{at}") if layers.bias else outer.new_zeros(len(outer))
        values, held = Layer.apply(values, inner, outer, bias)[:2]
        states.append(values[-1])
        cells.append(held[-1])
    return values.transpose(0, 1) if layers.batch_first else values, (torch.stack(states), torch.stack(cells))
