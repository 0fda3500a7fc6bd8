"""Forms of torch's functions that are faster on the processor, called in their place while a model computes.

In full precision at most the order of sums differs. In mixed precision ``torch.autocast`` alone loses at both ends: casting
small layers takes longer than computing them, and torch's fused attention is four times slower in bfloat16 than in full
precision. What is decided here depends on shapes only, so that all nodes agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedscale.torch_learner.kernels import LEAST_PRODUCTS

LEAST_PAIRS = 2_048  # of a query and a key in one head: with fewer, fused attention in full precision is faster
MOST_SCORES = 1 << 22  # in all heads of a batch: eight bytes of each are kept for the backward pass


class Substitutes(TorchFunctionMode):
    """While it is entered, functions of torch have other forms.

    Args:
        forms: what is called in place of each.
    """

    def __init__(self, forms: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._forms = forms

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or its form here."""
        return self._forms.get(func, func)(*args, **(kwargs or {}))


def _flat(function: Callable[..., Tensor], input: Tensor, *args: Any, **settings: Any) -> Tensor:  # noqa: A002 - torch's name
    """Rows of images by one of torch's functions; their gradient comes back channels last, as layers before it are fastest.

    Only where they are so themselves: the backward passes of pools, norms and activations copy gradients that lie otherwise,
    or take single steps through memory, up to four times as long.
    """
    if input.ndim == 4 and input.grad_fn is not None and input.is_contiguous(memory_format=torch.channels_last):
        input.register_hook(_channels_last)
    return function(input, *args, **settings)


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
    """A linear layer; in the precision of its weights where casts would cost more than the products."""
    if input.numel() * weight.shape[0] >= LEAST_PRODUCTS:
        return functional.linear(input, weight, bias)
    with torch.autocast("cpu", enabled=False):
        return functional.linear(input.to(weight.dtype), weight, bias)


def _whole(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """What torch computes more slowly in bfloat16 than in full precision, in full precision."""
    with torch.autocast("cpu", enabled=False):
        return function(*map(_full, args), **{name: _full(setting) for name, setting in settings.items()})


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's signature
    **settings: Any,
) -> Tensor:
    """Attention of all before, or of all, through the matrix of scores with products in bfloat16; of other kinds fused, in full precision."""
    pairs, other = query.shape[-2] * key.shape[-2], attn_mask is not None or dropout_p or any(settings.values())
    if other or pairs < LEAST_PAIRS or query.shape[:-2].numel() * pairs > MOST_SCORES:
        outputs: Tensor = _whole(functional.scaled_dot_product_attention, query, key, value, attn_mask, dropout_p, is_causal, **settings)
        return outputs
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    if is_causal:
        scores = scores + scores.new_full(scores.shape[-2:], -torch.inf).triu_(1)
    return torch.matmul(torch.softmax(scores, -1), value)


def _heads(query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_heads: int, *args: Any, **settings: Any) -> tuple[Tensor, Tensor | None]:
    """Torch's layers of many heads, tokens first: asked for weights, they take them from the matrix of scores.

    That has no answer for a token to which everything is hidden, so only where a mask at most hides what comes later.
    """
    forward, batch = functional.multi_head_attention_forward, query.shape[1] if query.ndim == 3 else 1
    hiding = settings.get("key_padding_mask") is not None or (settings.get("attn_mask") is not None and not settings.get("is_causal"))
    fused = not settings.get("need_weights", True) and not hiding
    if fused and num_heads * batch * len(query) * len(key) <= MOST_SCORES:
        asked = settings | {"need_weights": True, "average_attn_weights": False}
        return forward(query, key, value, embed_dim, num_heads, *args, **asked)[0], None
    outputs: tuple[Tensor, Tensor | None] = forward(query, key, value, embed_dim, num_heads, *args, **settings)
    return outputs


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value


FULL: Mapping[Any, Callable[..., Any]] = {
    function: partial(_flat, function) for function in (torch.flatten, torch.reshape, Tensor.flatten, Tensor.reshape)
}
SLOWER = functional.group_norm, torch.gru, torch.rnn_tanh, torch.rnn_relu
MIXED: Mapping[Any, Callable[..., Any]] = {
    **FULL,
    **{function: partial(_whole, function) for function in SLOWER},
    functional.linear: _linear,
    functional.scaled_dot_product_attention: _attention,
    functional.multi_head_attention_forward: _heads,
}
