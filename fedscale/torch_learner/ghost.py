"""Clipped gradients of many units at once, without a gradient for each: ghost clipping with book-keeping.

One forward and one backward pass give each layer's inputs and the gradients at its outputs. From these follow, layer by layer,
the norm of each unit's gradient and then the weighted sum of all of them, so there is no second backward pass. Layers without a
rule of their own take Opacus's rule for the gradient of each row.
Sources: Goodfellow 2015; Li et al. 2022 (ghost clipping); Bu et al. 2023 (book-keeping).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional

from fedscale.errors import AppError
from fedscale.torch_learner import kernels
from fedscale.torch_learner.rows import Rows

PerRow: TypeAlias = Mapping[Tensor, Tensor]
Sampler: TypeAlias = Callable[[nn.Module, list[Tensor], Tensor], PerRow]


class Rule(Protocol):
    """What a layer's inputs and the gradients at its outputs say of one pass over some rows."""

    def squares(self, rows: Rows) -> Tensor:
        """Squared norm of each unit's gradient with respect to the layer's parameters, shape ``(units,)``."""

    def sums(self, weights: Tensor) -> PerRow:
        """Sum of the rows' gradients, each times its weight; shape of the parameters."""


@dataclass(frozen=True)
class LinearRule:
    """A linear layer of one vector a row: the norm of an outer product is the product of norms."""

    layer: nn.Linear
    inputs: Tensor
    back: Tensor

    def squares(self, rows: Rows) -> Tensor:
        biased = float(_bias(self.layer) is not None)
        if rows.single:
            return (self.inputs.square().sum(1) + biased) * self.back.square().sum(1)
        pairs = (self.inputs @ self.inputs.t() + biased) * (self.back @ self.back.t())
        return rows.added((pairs * (rows.member[:, None] == rows.member)).sum(1))

    def sums(self, weights: Tensor) -> PerRow:
        back = (self.back * weights[:, None]).t()
        on_cpu = self.inputs.device.type == "cpu"
        weight = kernels.product(back, self.inputs.t()) if on_cpu and kernels.gains() else back @ self.inputs
        return _with_bias(self.layer, weight, back.sum(1))


@dataclass(frozen=True)
class EachRule:
    """Any other layer: the gradient of each row, which stays small where weights are shared over positions."""

    each: PerRow

    def squares(self, rows: Rows) -> Tensor:
        return torch.stack([rows.added(gradients).square().flatten(1).sum(1) for gradients in self.each.values()]).sum(0)

    def sums(self, weights: Tensor) -> PerRow:
        return {parameter: torch.tensordot(weights, gradients, 1) for parameter, gradients in self.each.items()}


@dataclass(frozen=True)
class EmbeddingRule:
    """An embedding: each row has gradients at the few entries that it looks up."""

    layer: nn.Embedding
    looked_up: Tensor
    back: Tensor

    def squares(self, rows: Rows) -> Tensor:
        members = rows.member.repeat_interleave(self.looked_up[0].numel())
        places, order = (members * self.layer.num_embeddings + self.looked_up.flatten()).sort()
        # Equal places are numbered from 0. How many there are only the values say, for which a GPU would have to be waited for.
        at = torch.cat([places.new_zeros(1), (places[1:] != places[:-1]).cumsum(0)])
        summed = torch.zeros_like(self._back()).index_add_(0, at, self._back()[order])
        owners = torch.zeros_like(at).scatter_(0, at, members[order])
        return summed.new_zeros(rows.units).index_add_(0, owners, summed.square().sum(1))

    def sums(self, weights: Tensor) -> PerRow:
        weighted = self._back() * weights.repeat_interleave(self.looked_up[0].numel())[:, None]
        return {self.layer.weight: torch.zeros_like(self.layer.weight).index_add_(0, self.looked_up.flatten(), weighted)}

    def _back(self) -> Tensor:
        back = self.back.reshape(-1, self.layer.embedding_dim)
        return back if self.layer.padding_idx is None else back * (self.looked_up.reshape(-1, 1) != self.layer.padding_idx)


def _linear(layer: nn.Linear, inputs: Tensor, back: Tensor) -> Rule:
    if inputs.ndim == 2:
        return LinearRule(layer, inputs, back)
    inputs, back = inputs.flatten(1, -2), back.flatten(1, -2)
    return EachRule(_with_bias(layer, back.transpose(1, 2) @ inputs, back.sum(1)))


def _convolution(layer: nn.Conv2d, inputs: Tensor, back: Tensor) -> Rule:
    padding = layer.padding
    if layer.groups > 1 or isinstance(padding, str) or layer.padding_mode != "zeros":
        return _opacus(layer, inputs, back)
    padded = functional.pad(inputs.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    patches = _patches(layer, padded, back.shape[2:])
    flat = back.permute(0, 2, 3, 1).flatten(1, 2)
    weight = torch.bmm(flat.transpose(1, 2), patches)
    # In the order in which memory has it: output, row and column of the kernel, input.
    shape = (len(back), layer.out_channels, *layer.kernel_size, layer.in_channels)
    return EachRule(_with_bias(layer, weight.view(shape).permute(0, 1, 4, 2, 3), flat.sum(1)))


def _patches(layer: nn.Conv2d, padded: Tensor, places: torch.Size) -> Tensor:
    """What each place of a convolution's outputs sees of its padded inputs, channels last: shape ``(n, places, kernel * channels)``."""
    (down, right), (high, wide) = layer.stride, layer.dilation
    rows, row, column, channel = padded.stride()
    size = (len(padded), *places, *layer.kernel_size, layer.in_channels)
    seen = padded.as_strided(size, (rows, row * down, column * right, row * high, column * wide, channel))
    return seen.reshape(len(padded), places.numel(), -1)


def _bias(layer: nn.Module) -> nn.Parameter | None:
    """A layer's bias, where it has one."""
    return dict(layer.named_parameters(recurse=False)).get("bias")


def _with_bias(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> PerRow:
    """Gradients by parameter; the bias's only where there is one."""
    own = _bias(layer)
    return {layer.weight: weight} if own is None else {layer.weight: weight, own: bias}


def _embedding(layer: nn.Embedding, inputs: Tensor, back: Tensor) -> Rule:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        raise AppError("an embedding that rescales itself")
    return EmbeddingRule(layer, inputs, back)


def _opacus(layer: nn.Module, inputs: Tensor, back: Tensor) -> Rule:
    each = samplers()[type(layer)](layer, [inputs], back)
    return EachRule({parameter: gradients for parameter, gradients in each.items() if parameter.requires_grad})


OWN: Mapping[type[nn.Module], Callable[[Any, Tensor, Tensor], Rule]] = {nn.Linear: _linear, nn.Conv2d: _convolution, nn.Embedding: _embedding}


@lru_cache(maxsize=1)
def samplers() -> Mapping[type[nn.Module], Sampler]:
    """Opacus's rules for the gradient of each row, by layer; loading it takes seconds, so only where a layer needs it."""
    from opacus.grad_sample import GradSampleModule

    rules: Mapping[type[nn.Module], Sampler] = GradSampleModule.GRAD_SAMPLERS
    return rules


@dataclass
class Tap:
    """What one layer saw and said in a pass."""

    layer: nn.Module
    inputs: Tensor
    version: int
    edge: Any


class Ghost:
    """Takes the gradients of a module apart.

    Args:
        module: whose training parameters each belong to one layer with a rule.

    Raises:
        AppError: they do not.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._layers = [part for part in module.modules() if any(own.requires_grad for own in part.parameters(recurse=False))]
        owners = [id(own) for part in self._layers for own in part.parameters(recurse=False)]
        if len(set(owners)) < len(owners):
            raise AppError("two layers share a parameter")
        for part in self._layers:
            if type(part) not in OWN and type(part) not in samplers():
                raise AppError(f"there is no rule for {type(part).__name__}")
            if not all(own.requires_grad for own in part.parameters(recurse=False)):
                raise AppError("a layer is frozen in part")

    @property
    def each(self) -> int:
        """Coordinates of the gradients that are held for each row."""
        return sum(own.numel() for part in self._layers if type(part) is not nn.Linear for own in part.parameters(recurse=False))

    def clipped(self, losses: Callable[[Tensor], Tensor], features: Tensor, rows: Rows, clip: float) -> list[Tensor]:
        """The sum of the units' gradients, each scaled down to a norm of at most ``clip``, in the order of the training parameters.

        Args:
            losses: the loss of each row from the module's outputs, shape ``(n,)``.
            features: shape ``(n, ...)``.
            rows: which unit each belongs to.
            clip: the norm.

        Raises:
            AppError: the forward pass uses a layer otherwise than once.
        """
        taps: list[Tap] = []
        with self._watched(taps, features):
            outputs = self._module(features)
        if len(taps) != len(self._layers) or any(tap.inputs._version != tap.version for tap in taps):  # noqa: SLF001 - torch has no public name for it
            raise AppError("a layer is used more than once, or not by being called")
        total = (losses(outputs) * rows.part).sum()
        found = torch.autograd.grad(total, [tap.edge for tap in taps], allow_unused=True)
        with torch.no_grad():
            backs: tuple[Tensor | None, ...] = found
            rules = [self._rule(tap, back) for tap, back in zip(taps, backs, strict=True) if back is not None]
            return self._summed(rules, rows, clip)

    def _summed(self, rules: Sequence[Rule], rows: Rows, clip: float) -> list[Tensor]:
        """The weighted sum behind the rules of a pass."""
        squares = torch.stack([rule.squares(rows) for rule in rules]).sum(0)
        weights = rows.spread(rows.weights(squares.sqrt(), clip))
        summed: dict[int, Tensor] = {}
        for rule in rules:
            summed |= {id(parameter): gradient for parameter, gradient in rule.sums(weights).items()}
        return [summed[id(parameter)] if id(parameter) in summed else torch.zeros_like(parameter) for parameter in self._trained]

    def _rule(self, tap: Tap, back: Tensor) -> Rule:
        """The rule of a layer for what it saw and said."""
        return OWN.get(type(tap.layer), _opacus)(tap.layer, tap.inputs, back)

    @contextmanager
    def _watched(self, taps: list[Tap], features: Tensor) -> Iterator[None]:
        """Note what each layer sees; nothing of that is left behind."""

        def note(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            taps.append(Tap(layer, inputs[0].detach(), inputs[0]._version, get_gradient_edge(outputs)))  # noqa: SLF001 - as above

        if features.is_floating_point():
            # So that the outputs of the first layer have a gradient even where its parameters want none.
            features.requires_grad_()
        handles = [layer.register_forward_hook(note) for layer in self._layers]
        frozen = self._trained if features.is_floating_point() else []
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_()
            for handle in handles:
                handle.remove()
