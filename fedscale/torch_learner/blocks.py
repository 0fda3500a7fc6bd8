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
from fedscale.torch_learner.chain import Dense, Stage, chain_of
from fedscale.torch_learner.examples import Examples
from fedscale.torch_learner.factored import Activation, Layer, Own, Pace, Shared, shares
from fedscale.torch_learner.resident import arrays_of, shared_state, tensor_of
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


def loss_of(loss: object, outputs: int) -> Loss | None:
    """The form for many clients of a loss, where it has one: torch's own as they come, for classes or for one number a row."""
    for function, kind, form in LOSSES:
        plain = type(loss) is kind and repr(vars(loss)) == repr(vars(kind()))
        if (loss is function or plain) and (outputs > 1) == (form is cross_entropy):
            return form
    return None


@dataclass(frozen=True)
class Learnt:
    """What a block of clients has learnt.

    Args:
        delta: the weighted mean of the model changes.
        losses: the mean loss of each client.
    """

    delta: Vector
    losses: npt.NDArray[np.float64]


def blocks_for(module: nn.Module, loss: object, training: Training, proximal: float) -> tuple[Blocks | None, str]:
    """What trains blocks of clients of a freshly built module; or nothing and why not."""
    if training.optimizer.name != "sgd" or training.amp:
        return None, f"the optimizer is {training.optimizer.name}" if not training.amp else "mixed precision is asked for"
    stages, why = chain_of(module)
    if why:
        return None, why
    form = loss_of(loss, next(stage.outputs for stage in reversed(stages) if isinstance(stage, Dense)))
    if form is None:
        return None, "the loss is not one of torch's as it comes, for classes or for one output"
    return Blocks(stages, form, Schema.of(arrays_of(shared_state(module))), training, proximal), ""


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
        self._shuffle, self._space = Shuffle(), torch.empty(0)
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

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float]) -> Learnt:
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
            delta = self._change(layers, torch.tensor(weights, dtype=torch.float32) / sum(weights))
        if not (torch.isfinite(losses).all() and np.isfinite(delta @ delta)):
            raise UpdateRejected("the loss is not finite", why="training diverged", hint="lower train.optimizer.lr")
        return Learnt(delta, (losses / (share > 0).sum(1)).numpy())

    def _rows(self, pace: Pace, examples: Sequence[Examples], seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Features, targets and what each row counts in its batch, in the order in which each client sees them; padding counts nothing."""
        count, kind = pace.steps * pace.batch, examples[0].targets
        size = len(examples) * count * self._width
        # Memory that was just used is still in the cache, and new memory would have to be mapped first.
        self._space = self._space if self._space.numel() >= size else torch.empty(size)
        features, targets = self._space[:size].view(len(examples), count, self._width), torch.empty(len(examples), count, dtype=kind.dtype)
        shares: dict[int, Tensor] = {}
        for own, seed, into, labels in zip(examples, seeds, features.unbind(), targets.unbind(), strict=True):
            rows, flat = own.targets.shape[0], own.features if own.features.ndim == 2 else own.features.flatten(1)
            if own.targets.shape != (rows,) or labels.dtype != own.targets.dtype or flat.shape[1] != self._width or flat.dtype != features.dtype:
                raise UpdateRejected("the rows of a client do not fit the model")
            if rows not in shares:
                shares[rows] = _shares(rows, pace)
            self._shuffle.seed(seed)
            order = torch.from_numpy(self._shuffle.draw(rows) if rows == count else _padded(self._shuffle, rows, pace))
            torch.index_select(flat, 0, order, out=into)
            torch.index_select(own.targets, 0, order, out=labels)
        share = torch.stack([shares[own.targets.shape[0]] for own in examples])
        if self._outputs > 1 and (targets.is_floating_point() or int(targets.min()) < 0 or int(targets.max()) >= self._outputs):
            raise UpdateRejected("the labels of a client do not fit the model")
        return features, targets, share

    def _first(self, rows: Tensor) -> Tensor:
        """The rows as they enter the first linear layer."""
        for stage in self._stages:
            if isinstance(stage, Dense):
                break
            rows = stage(rows)
        return rows

    def _layers(self, model: Packed, clients: int, pace: Pace, rows: Tensor) -> list[Layer | Activation]:
        """The chain from the first linear layer on, with the global model in it."""
        layers: list[Layer | Activation] = []
        for stage in self._stages:
            if not isinstance(stage, Dense):
                layers += [Activation(stage)] if layers else []
                continue
            weight = tensor_of(model[stage.weight])
            bias = tensor_of(model[stage.bias]) if stage.bias else None
            if shares(stage, pace, first=not layers):
                layers.append(Shared(weight, bias, clients, pace, self._product, None if layers else rows))
            else:
                layers.append(Own(weight, bias, clients, pace))
        return layers

    def _step(self, layers: list[Layer | Activation], step: int, rows: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        """One step of all clients; the loss of each, summed over its batch."""
        for layer in layers:
            rows = layer.forward(step, rows)
        losses, gradient = self._loss(rows, targets)
        back: Tensor | None = gradient.mul_(share.unsqueeze(2))
        for at in reversed(range(len(layers))):
            back = layers[at].backward(step, back, inwards=at > 0) if back is not None else None
        return (losses * (share > 0)).sum(1, dtype=torch.float64)

    def _change(self, layers: list[Layer | Activation], weights: Tensor) -> Vector:
        """The weighted mean of the model changes."""
        flat = self._schema.zeros()
        parts = self._schema.unpack(flat)
        dense = [stage for stage in self._stages if isinstance(stage, Dense)]
        for stage, layer in zip(dense, [layer for layer in layers if not isinstance(layer, Activation)], strict=True):
            weight, bias = layer.change(weights)
            parts[stage.weight][:] = weight.numpy()
            if stage.bias:
                parts[stage.bias][:] = bias.numpy()
        return flat


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T`` by torch's own kernel."""
    return rows @ weight.t()


def _padded(shuffle: Shuffle, rows: int, pace: Pace) -> npt.NDArray[np.int64]:
    """The rows of each step in turn, epoch after epoch; where a batch is not full, its place is taken by row 0."""
    epoch, count = -(-rows // pace.batch) * pace.batch, pace.steps * pace.batch
    order = np.zeros(-(-count // epoch) * epoch, np.int64)
    for begin in range(0, count, epoch):
        order[begin : begin + rows] = shuffle.draw(rows)
    return order[:count]


def _shares(rows: int, pace: Pace) -> Tensor:
    """What each place of ``_padded`` counts in the mean of its batch; nothing where it is only filled."""
    epoch, count = -(-rows // pace.batch) * pace.batch, pace.steps * pace.batch
    last = rows % pace.batch or pace.batch
    share = torch.full((epoch,), 1 / pace.batch)
    share[epoch - pace.batch :] = 0.0
    share[epoch - pace.batch : epoch - pace.batch + last] = 1 / last
    return share.repeat(-(-count // epoch))[:count]
