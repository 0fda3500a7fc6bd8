"""An LSTM layer of many clients at once: the clients come first in every tensor, and a step through time is one kernel for all."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Parts: TypeAlias = tuple[Tensor, ...]


@torch.no_grad()
def forward(rows: Tensor, inner: Tensor, outer: Tensor, bias: Tensor, added: Tensor) -> Parts:
    """One layer through time, from a state of zeros (Hochreiter and Schmidhuber 1997, in torch's order of gates).

    Args:
        rows: inputs, shape ``(clients, time, batch, in)``.
        inner: weights of the inputs, shape ``(clients, 4 * n, in)``.
        outer: weights of the state, shape ``(clients, 4 * n, n)``.
        bias, added: of both, shape ``(clients, 4 * n)``.

    Returns:
        The states, the cells and their tanh, each ``(clients, time, batch, n)``, and the gates, ``(clients, time, batch, 4 * n)``.
    """
    gates = drawn_in(rows, inner, bias + added)
    states, cells, bounded = (gates.new_empty(*gates.shape[:3], outer.shape[2]) for _ in range(3))
    turned, before = outer.transpose(1, 2), None
    for here, cell, tanh, state in zip(gates, cells, bounded, states, strict=True):
        if before is not None:
            torch.baddbmm(here, before[0], turned, out=here)
        let, keep, new, show = here.split(outer.shape[2], 2)
        here[..., : 2 * outer.shape[2]].sigmoid_()
        show.sigmoid_()
        torch.mul(let, new.tanh_(), out=cell)
        if before is not None:
            cell.addcmul_(keep, before[1])
        torch.mul(show, torch.tanh(cell, out=tanh), out=state)
        before = state, cell
    return tuple(part.transpose(0, 1) for part in (states, cells, bounded, gates))


@torch.no_grad()
def backward(wanted: Tensor, at_cells: Tensor, rows: Tensor, inner: Tensor, outer: Tensor, *kept: Tensor) -> Parts:
    """The gradients at the arguments of ``forward``.

    Args:
        wanted: the gradient at the states, ``(clients, time, batch, n)``.
        at_cells: that at the cells, of which only the last is ever seen.
        rows, inner, outer: as ``forward`` had them.
        kept: what ``forward`` returned.
    """
    states, cells, bounded, gates = (part.transpose(0, 1) for part in kept)
    back, cell, state = torch.empty_like(gates), at_cells[:, -1].clone(), wanted[:, -1]
    for now in reversed(range(len(gates))):
        here, tanh = gates[now], bounded[now]
        let, keep, new, show = here.split(outer.shape[2], 2)
        at_let, at_keep, at_new, at_show = back[now].split(outer.shape[2], 2)
        cell.add_(torch.ops.aten.tanh_backward(state * show, tanh))
        sigmoid_backward(state * tanh, show, at_show)
        sigmoid_backward(cell * new, let, at_let)
        torch.ops.aten.tanh_backward.grad_input(cell * let, new, grad_input=at_new)
        if not now:
            at_keep.zero_()
            break
        sigmoid_backward(cell * cells[now - 1], keep, at_keep)
        cell.mul_(keep)
        state = torch.baddbmm(wanted[:, now - 1], back[now], outer)
    flat, before = back.transpose(0, 1).flatten(1, 2), states[:-1].transpose(0, 1).flatten(1, 2)
    turned, later = flat.transpose(1, 2), flat[:, rows.shape[2] :].transpose(1, 2)
    shift = flat.sum(1)
    return torch.bmm(flat, inner).view_as(rows), torch.bmm(turned, rows.flatten(1, 2)), torch.bmm(later, before), shift, shift


def drawn_in(rows: Tensor, inner: Tensor, bias: Tensor) -> Tensor:
    """What the inputs of all steps give to the gates: ``(time, clients, batch, gates * n)``, so that a step lies in one piece."""
    flat = torch.baddbmm(bias.unsqueeze(1), rows.flatten(1, 2), inner.transpose(1, 2))
    return flat.view(*rows.shape[:3], -1).transpose(0, 1).contiguous()


def sigmoid_backward(gradient: Tensor, values: Tensor, out: Tensor) -> None:
    """The gradient at the arguments of a sigmoid, from that at its values."""
    torch.ops.aten.sigmoid_backward.grad_input(gradient, values, grad_input=out)
