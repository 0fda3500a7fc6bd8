"""Trains many clients at once, where the app's model allows it: the same steps as one after the other, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

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
from fedscale.torch_learner.factored import Activation, Function, Layer, Own, Pace, Rectifier, Seen, Shared, shares
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


class Trainer(Protocol):
    """Trains many clients at once."""

    def alike(self, rows: int) -> int:
        """Clients whose numbers of rows give the same may be trained together."""

    def most(self, rows: int) -> int:
        """How many clients with so many rows go together."""

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float]) -> Learnt:
        """Train clients from a model on.

        Raises:
            AppError, UpdateRejected: as a client alone, or because the clients do not go together; one by one it shows which.
        """


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

    def alike(self, rows: int) -> int:
        """The steps of a client with so many rows; only clients that take the same steps are trained together."""
        steps = self._training.epochs * -(-rows // self._training.batch_size)
        return min(steps, self._training.max_steps or steps)

    def pace(self, rows: int) -> Pace:
        """The steps of a client with so many rows."""
        return Pace(self.alike(rows), self._training.batch_size, self._training.optimizer, self._proximal)

    def most(self, rows: int) -> int:
        """How many clients with so many rows go together: as many as stay in the cache, whatever the machine."""
        return max(1, min(MOST_CLIENTS, MOST_FEATURES // (self.alike(rows) * self._training.batch_size * self._width)))

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float]) -> Learnt:
        """Train clients of one pace from a model on.

        Raises:
            UpdateRejected: training diverged for one of them, or labels do not fit; one by one it shows for which.
        """
        pace = self.pace(max(map(len, examples)))
        seen, targets, share = self._rows(pace, examples, seeds)
        with torch.no_grad():
            layers = self._layers(model, len(examples), pace, seen)
            losses = torch.zeros(len(examples), dtype=torch.float64)
            for step in range(pace.steps):
                some = slice(step * pace.batch, (step + 1) * pace.batch)
                losses += self._step(layers, step, targets[:, some], share[:, some])
            delta = self._change(layers, torch.tensor(weights, dtype=torch.float32) / sum(weights))
        if not (torch.isfinite(losses).all() and np.isfinite(delta @ delta)):
            raise UpdateRejected("the loss is not finite", why="training diverged", hint="lower train.optimizer.lr")
        return Learnt(delta, (losses / (share > 0).sum(1)).numpy())

    def _rows(self, pace: Pace, examples: Sequence[Examples], seeds: Sequence[int]) -> tuple[Seen, Tensor, Tensor]:
        """Features, and in the order in which each client sees its rows targets and what a row counts in its batch; padding counts nothing."""
        count, sizes = pace.steps * pace.batch, [own.targets.shape[0] for own in examples]
        flat = [own.features if own.features.ndim == 2 else own.features.flatten(1) for own in examples]
        alike = {(own.targets.ndim, own.targets.dtype, rows.shape[1], rows.dtype) for own, rows in zip(examples, flat, strict=True)}
        if alike != {(1, examples[0].targets.dtype, self._width, torch.float32)}:
            raise UpdateRejected("the rows of a client do not fit the model")
        orders = torch.from_numpy(np.stack([self._order(seed, rows, pace) for seed, rows in zip(seeds, sizes, strict=True)]))
        if max(sizes) > count:
            # Of more rows than the steps take only those are needed, and lie in order.
            flat = [rows[order] for rows, order in zip(flat, orders.unbind(), strict=True)]
            targets = torch.stack([own.targets[order] for own, order in zip(examples, orders.unbind(), strict=True)])
            orders = torch.arange(count).expand(len(examples), -1)
        else:
            targets = _side_by_side([own.targets for own in examples], sizes, examples[0].targets.new_empty(0)).gather(1, orders)
        if self._outputs > 1 and (targets.is_floating_point() or int(targets.min()) < 0 or int(targets.max()) >= self._outputs):
            raise UpdateRejected("the labels of a client do not fit the model")
        shares = {rows: _shares(rows, pace) for rows in set(sizes)}
        features = self._space = _side_by_side(flat, [rows.shape[0] for rows in flat], self._space)
        return Seen(self._first(features), orders), targets, torch.stack([shares[rows] for rows in sizes])

    def _order(self, seed: int, rows: int, pace: Pace) -> npt.NDArray[np.int64]:
        """The rows of a client's steps, one after the other."""
        self._shuffle.seed(seed)
        return self._shuffle.draw(rows) if rows == pace.steps * pace.batch else _padded(self._shuffle, rows, pace)

    def _first(self, rows: Tensor) -> Tensor:
        """The rows as they enter the first linear layer."""
        for stage in self._stages:
            if isinstance(stage, Dense):
                break
            rows = stage(rows)
        return rows

    def _layers(self, model: Packed, clients: int, pace: Pace, seen: Seen) -> list[Layer | Function]:
        """The chain from the first linear layer on, with the global model in it."""
        layers: list[Layer | Function] = []
        for stage in self._stages:
            if not isinstance(stage, Dense):
                layers += [Rectifier() if stage is torch.relu else Activation(stage)] if layers else []
                continue
            weight = tensor_of(model[stage.weight])
            bias = tensor_of(model[stage.bias]) if stage.bias else None
            known = None if layers else seen
            if shares(stage, pace, first=not layers):
                layers.append(Shared(weight, bias, clients, pace, self._product, known))
            else:
                layers.append(Own(weight, bias, clients, pace, known))
        return layers

    def _step(self, layers: list[Layer | Function], step: int, targets: Tensor, share: Tensor) -> Tensor:
        """One step of all clients; the loss of each, summed over its batch."""
        rows = targets  # which the first layer does not read: it knows its own
        for layer in layers:
            rows = layer.forward(step, rows)
        losses, gradient = self._loss(rows, targets)
        back: Tensor | None = gradient.mul_(share.unsqueeze(2))
        for at in reversed(range(len(layers))):
            back = layers[at].backward(step, back, inwards=at > 0) if back is not None else None
        return (losses * (share > 0)).sum(1, dtype=torch.float64)

    def _change(self, layers: list[Layer | Function], weights: Tensor) -> Vector:
        """The weighted mean of the model changes."""
        flat = self._schema.zeros()
        parts = self._schema.unpack(flat)
        dense = [stage for stage in self._stages if isinstance(stage, Dense)]
        for stage, layer in zip(dense, [layer for layer in layers if not isinstance(layer, Function)], strict=True):
            weight, bias = layer.change(weights)
            parts[stage.weight][:] = weight.numpy()
            if stage.bias:
                parts[stage.bias][:] = bias.numpy()
        return flat


def _side_by_side(parts: Sequence[Tensor], sizes: Sequence[int], space: Tensor) -> Tensor:
    """The rows of all clients, shape ``(clients, most rows, ...)``, zeros where a client has fewer; in memory that was used before if it fits.

    Memory that was just used is still in the cache, and new memory would have to be mapped first.
    """
    shape = (len(parts), max(sizes), *parts[0].shape[1:])
    out = space if space.shape == shape else parts[0].new_empty(shape)
    if min(sizes) == max(sizes):
        return torch.stack(list(parts), out=out)
    out.zero_()
    for into, part, size in zip(out.unbind(), parts, sizes, strict=True):
        into[:size] = part
    return out


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
