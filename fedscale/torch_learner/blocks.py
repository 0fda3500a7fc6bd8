"""Trains many clients at once, where the app's model allows it: the same steps as one after the other, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale.errors import UpdateRejected
from fedscale.learner import Training
from fedscale.sampling import Shuffle
from fedscale.torch_learner import kernels
from fedscale.torch_learner.chain import Dense, Elementwise, Stage
from fedscale.torch_learner.examples import Examples
from fedscale.torch_learner.factored import Layer, Own, Pace, Shared, shares
from fedscale.vector import Packed, Schema, Vector

Loss: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

MOST_CLIENTS = 64
MOST_FEATURES = 1 << 20


def cross_entropy(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``(clients, batch)`` and their gradients ``(clients, batch, classes)``."""
    logs = functional.log_softmax(outputs, 2)
    classes = targets.unsqueeze(2)
    losses = -logs.gather(2, classes).squeeze(2)
    return losses, logs.exp_().scatter_add_(2, classes, -torch.ones_like(classes, dtype=logs.dtype))


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one logit a row."""
    wanted = targets.unsqueeze(2).to(outputs.dtype)
    losses = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return losses.squeeze(2), outputs.sigmoid() - wanted


def squared_error(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one number a row."""
    off = outputs - targets.unsqueeze(2).to(outputs.dtype)
    return off.square().squeeze(2), 2 * off


LOSSES: tuple[tuple[object, type[nn.Module], Loss], ...] = (
    (functional.cross_entropy, nn.CrossEntropyLoss, cross_entropy),
    (functional.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss, binary_cross_entropy),
    (functional.mse_loss, nn.MSELoss, squared_error),
)


def loss_of(loss: object) -> Loss | None:
    """The form for many clients of a loss, where it has one: torch's own, as they come."""
    for function, kind, form in LOSSES:
        plain = type(loss) is kind and repr(vars(loss)) == repr(vars(kind()))
        if loss is function or plain:
            return form
    return None


@dataclass(frozen=True)
class Outcome:
    """What a block of clients has learnt.

    Args:
        delta: the weighted mean of the model changes.
        losses: the mean loss of each client.
    """

    delta: Vector
    losses: npt.NDArray[np.float64]


class Blocks:
    """Trains blocks of clients.

    Args:
        stages: the model as a chain.
        loss: the loss, in the form for many clients.
        schema: the model's parts.
        training: how to train; SGD in full precision.
        proximal: FedProx's mu.
    """

    def __init__(self, stages: Sequence[Stage], loss: Loss, schema: Schema, training: Training, proximal: float) -> None:
        self._stages, self._loss, self._schema, self._training, self._proximal = stages, loss, schema, training, proximal
        self._shuffle = Shuffle()
        self._product = kernels.product if kernels.gains() else _product
        self._width = next(stage.inputs for stage in stages if isinstance(stage, Dense))
        self._outputs = next(stage.outputs for stage in reversed(stages) if isinstance(stage, Dense))

    def pace(self, rows: int) -> Pace:
        """The steps of a client with so many rows; only clients of one pace make a block."""
        training = self._training
        steps = training.epochs * -(-rows // training.batch_size)
        return Pace(min(steps, training.max_steps or steps), training.batch_size, training.optimizer, self._proximal)

    def most(self, pace: Pace) -> int:
        """How many clients make a block: as many as stay in the cache, whatever the machine."""
        return max(1, min(MOST_CLIENTS, MOST_FEATURES // (pace.steps * pace.batch * self._width)))

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float]) -> Outcome:
        """Train clients of one pace from a model on.

        Raises:
            UpdateRejected: training diverged for one of them, or labels do not fit; one by one it shows for which.
        """
        pace = self.pace(len(examples[0]))
        features, targets, share = self._rows(pace, examples, seeds)
        first = self._first(features)
        with torch.no_grad():
            layers = self._layers(model, len(examples), pace, first)
            losses = torch.zeros(len(examples), dtype=torch.float64)
            for step in range(pace.steps):
                some = slice(step * pace.batch, (step + 1) * pace.batch)
                losses += self._step(layers, step, first[:, some], targets[:, some], share[:, some])
            delta = self._change(layers, torch.tensor(weights) / sum(weights))
        if not (torch.isfinite(losses).all() and np.isfinite(delta @ delta)):
            raise UpdateRejected("the loss is not finite", why="training diverged", hint="lower train.optimizer.lr")
        return Outcome(delta, (losses / (share > 0).sum(1)).numpy())

    def _rows(self, pace: Pace, examples: Sequence[Examples], seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Features, targets and what each row counts in its batch, in the order in which each client sees them; padding counts nothing."""
        count, batch = pace.steps * pace.batch, pace.batch
        kind = examples[0].targets
        features, targets = torch.zeros(len(examples), count, self._width), torch.zeros(len(examples), count, dtype=kind.dtype)
        share = torch.zeros(len(examples), count)
        for at, (own, seed) in enumerate(zip(examples, seeds, strict=True)):
            rows, flat = len(own), own.features.reshape(len(own), -1)
            if own.targets.ndim != 1 or own.targets.dtype != kind.dtype or flat.shape[1] != self._width or own.classes > max(self._outputs, 2):
                raise UpdateRejected("the rows of a client do not fit the model")
            self._shuffle.seed(seed)
            for begin in range(0, count, -(-rows // batch) * batch):
                order = torch.from_numpy(self._shuffle.draw(rows))[: count - begin]
                end = begin + len(order)
                torch.index_select(flat, 0, order, out=features[at, begin:end])
                torch.index_select(own.targets, 0, order, out=targets[at, begin:end])
                full = begin + len(order) // batch * batch
                share[at, begin:full] = 1 / batch
                share[at, full:end] = 1 / max(end - full, 1)
        return features, targets, share

    def _first(self, rows: Tensor) -> Tensor:
        """The rows as they enter the first linear layer."""
        for stage in self._stages:
            if isinstance(stage, Dense):
                break
            rows = stage(rows)
        return rows

    def _layers(self, model: Packed, clients: int, pace: Pace, rows: Tensor) -> list[Layer | Elementwise]:
        """The chain from the first linear layer on, with the global model in it."""
        layers: list[Layer | Elementwise] = []
        for stage in self._stages:
            if isinstance(stage, Dense):
                weight = torch.from_numpy(model[stage.weight])
                bias = torch.from_numpy(model[stage.bias]) if stage.bias else None
                if shares(stage, pace, first=not layers):
                    layers.append(Shared(weight, bias, clients, pace, self._product, None if layers else rows))
                else:
                    layers.append(Own(weight, bias, clients, pace))
            elif layers:
                layers.append(stage)
        return layers

    def _step(self, layers: list[Layer | Elementwise], step: int, rows: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        """One step of all clients; the loss of each, summed over its batch."""
        passed: list[tuple[Tensor, Tensor]] = []
        values = rows
        for layer in layers:
            if isinstance(layer, Shared | Own):
                values = layer.forward(step, values)
                passed.append((values, values))
            elif isinstance(layer, nn.ReLU) or layer in RELUS:
                values = values.relu()
                passed.append((values, values))
            else:
                with torch.enable_grad():
                    inner = values.requires_grad_()
                    values = layer(inner)
                passed.append((inner, values))
                values = values.detach()
        losses, gradient = self._loss(values, targets)
        gradient = gradient.mul_(share.unsqueeze(2))
        for at in reversed(range(len(layers))):
            gradient = _back(layers[at], step, gradient, passed[at], inwards=at > 0)
        return (losses * (share > 0)).sum(1, dtype=torch.float64)

    def _change(self, layers: list[Layer | Elementwise], weights: Tensor) -> Vector:
        """The weighted mean of the model changes."""
        flat = self._schema.zeros()
        parts = self._schema.unpack(flat)
        dense = [stage for stage in self._stages if isinstance(stage, Dense)]
        for stage, layer in zip(dense, (layer for layer in layers if isinstance(layer, Shared | Own)), strict=True):
            weight, bias = layer.change(weights)
            parts[stage.weight][:] = weight.numpy()
            if stage.bias:
                parts[stage.bias][:] = bias.numpy()
        return flat
