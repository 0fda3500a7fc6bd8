"""A GRU layer of many clients at once, as that of an LSTM."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale.torch_learner.lstm import Parts, drawn_in, sigmoid_backward


@torch.no_grad()
def forward(rows: Tensor, inner: Tensor, outer: Tensor, bias: Tensor, added: Tensor) -> Parts:
    """One layer through time, from a state of zeros (Cho et al. 2014, as torch has it: the bias of the state is reset with it).

    Args:
        rows: inputs, shape ``(clients, time, batch, in)``.
        inner: weights of the inputs, shape ``(clients, 3 * n, in)``.
        outer: weights of the state, shape ``(clients, 3 * n, n)``.
        bias, added: of both, shape ``(clients, 3 * n)``.

    Returns:
        The states, ``(clients, time, batch, n)``, the gates, ``(clients, time, batch, 3 * n)``, and what is reset, shaped as the states.
    """
    gates, size = drawn_in(rows, inner, bias), outer.shape[2]
    states, drawn = (gates.new_empty(*gates.shape[:3], size) for _ in range(2))
    before, turned = gates.new_zeros(*gates.shape[1:3], size), outer.transpose(1, 2)
    for here, state, pulled in zip(gates, states, drawn, strict=True):
        pull = torch.baddbmm(added.unsqueeze(1), before, turned)
        here[..., : 2 * size].add_(pull[..., : 2 * size]).sigmoid_()
        reset, keep, new = here.split(size, 2)
        pulled.copy_(pull[..., 2 * size :])
        new.addcmul_(reset, pulled).tanh_()
        before = torch.lerp(new, before, keep, out=state)
    return tuple(part.transpose(0, 1) for part in (states, gates, drawn))


@torch.no_grad()
def backward(wanted: Tensor, rows: Tensor, inner: Tensor, outer: Tensor, *kept: Tensor) -> Parts:
    """The gradients at the arguments of ``forward``.

    Args:
        wanted: the gradient at the states, ``(clients, time, batch, n)``.
        rows, inner, outer: as ``forward`` had them.
        kept: what ``forward`` returned.
    """
    (states, gates, drawn), size = (part.transpose(0, 1) for part in kept), outer.shape[2]
    at_inner, at_outer, state = torch.empty_like(gates), torch.empty_like(gates), wanted[:, -1]
    for now in reversed(range(len(gates))):
        reset, keep, new = gates[now].split(size, 2)
        at_reset, at_keep, at_new = at_inner[now].split(size, 2)
        torch.ops.aten.tanh_backward.grad_input(state * (1 - keep), new, grad_input=at_new)
        sigmoid_backward(state * (states[now - 1] - new if now else -new), keep, at_keep)
        sigmoid_backward(at_new * drawn[now], reset, at_reset)
        at_outer[now, ..., : 2 * size] = at_inner[now, ..., : 2 * size]
        torch.mul(at_new, reset, out=at_outer[now, ..., 2 * size :])
        if now:
            state = torch.baddbmm(wanted[:, now - 1], at_outer[now], outer).addcmul_(state, keep)
    own, pulled = (part.transpose(0, 1).flatten(1, 2) for part in (at_inner, at_outer))
    before, later = states[:-1].transpose(0, 1).flatten(1, 2), pulled[:, rows.shape[2] :].transpose(1, 2)
    at_weights = torch.bmm(own.transpose(1, 2), rows.flatten(1, 2)), torch.bmm(later, before)
    return torch.bmm(own, inner).view_as(rows), *at_weights, own.sum(1), pulled.sum(1)
