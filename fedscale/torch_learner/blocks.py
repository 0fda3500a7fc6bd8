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
from fedscale.privacy.clip import within
from fedscale.sampling import Shuffle
from fedscale.torch_learner import kernels
from fedscale.torch_learner.chain import Dense, Stage, chain_of
from fedscale.torch_learner.examples import Examples
from fedscale.torch_learner.factored import Activation, Function, Layer, Own, Pace, Rectifier, Shared, factors
from fedscale.torch_learner.lineup import Again, Once, Orders, Room, Seen, ordered, shares, side_by_side, taken
from fedscale.torch_learner.resident import arrays_of, shared_state, tensor_of, within_squares
from fedscale.vector import Packed, Schema, Vector

Floats: TypeAlias = npt.NDArray[np.float64]
Loss: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

MOST_CLIENTS = 64
MOST_FEATURES = 1 << 20
# A cohort in so many parts keeps many processors busy to the end; a smaller block would gain less than it could.
PARTS, FEW_CLIENTS = 16, 16


def cross_entropy(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``(clients, batch)`` and their gradients ``(clients, batch, classes)``."""
    # Step by step: over a few classes torch's log_softmax takes three times as long.
    classes, shares = targets.unsqueeze(2), outputs - outputs.amax(2, keepdim=True)
    wanted = shares.gather(2, classes)
    totals = shares.exp_().sum(2, keepdim=True)
    losses = (totals.log() - wanted).squeeze(2)
    return losses, shares.div_(totals).scatter_add_(2, classes, -torch.ones_like(wanted))


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
        delta: the weighted mean of the model changes, each clipped where a clip is given.
        losses: the mean loss of each client.
        norms: that of each client's change where a clip is given; else none.

    Raises:
        UpdateRejected: training diverged for one of them.
    """

    delta: Vector
    losses: Floats
    norms: Floats

    def __post_init__(self) -> None:
        """Refuse what is not finite."""
        if not (np.isfinite(self.losses).all() and np.isfinite(self.norms).all() and within_squares(self.delta)):
            raise UpdateRejected("the loss is not finite", why="training diverged", hint="lower train.optimizer.lr")


def norms_of(squares: Sequence[Tensor]) -> Floats:
    """The norms of clients' changes, from the squared norms of the parts; none of no parts."""
    return np.sqrt(sum(part.cpu().numpy() for part in squares)) if squares else np.empty(0)


def counted(weights: Sequence[float], norms: Floats, clip: float | None) -> Tensor:
    """What each client's change counts in the mean, float32 of shape ``(clients,)``: less where its norm is beyond the clip."""
    share = np.asarray(weights) / sum(weights)
    return torch.from_numpy((share if clip is None else within(norms, clip) * share).astype(np.float32))


def part_of(clients: int) -> int:
    """How many of a cohort's clients are a block, whoever works on how many of them: part of what a run computes."""
    return min(MOST_CLIENTS, max(FEW_CLIENTS, -(-clients // PARTS)))


class Trainer(Protocol):
    """Trains many clients at once."""

    def block(self, clients: int) -> int:
        """How many of so many clients are done in one go."""

    def alike(self, rows: int) -> int:
        """Clients whose numbers of rows give the same may be trained together."""

    def most(self, rows: int) -> int:
        """How many clients with so many rows go together."""

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float], clip: float | None = None) -> Learnt:
        """Train clients from a model on.

        Args:
            model: where they begin.
            examples: the rows of each.
            seeds: of the chance of each.
            weights: what each counts in the mean.
            clip: largest norm of a change that counts in full, where there is one.

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
        self._shuffle, self._room = Shuffle(), Room()
        self._product = kernels.product if kernels.gains() else _product
        self._width = next(stage.inputs for stage in stages if isinstance(stage, Dense))
        self._outputs = next(stage.outputs for stage in reversed(stages) if isinstance(stage, Dense))

    def block(self, clients: int) -> int:
        """As many as keep many processors busy."""
        return part_of(clients)

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

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float], clip: float | None = None) -> Learnt:
        """Train clients of one pace from a model on.

        Raises:
            UpdateRejected: training diverged for one of them, or labels do not fit; one by one it shows for which.
        """
        pace = self.pace(max(map(len, examples)))
        seen, targets, share = self._rows(pace, examples, seeds, whole=clip is not None)
        with torch.no_grad():
            layers = self._layers(model, len(examples), pace, seen)
            losses = torch.zeros(len(examples), dtype=torch.float64)
            for step in range(pace.steps):
                some = slice(step * pace.batch, (step + 1) * pace.batch)
                losses += self._step(layers, step, targets[:, some], share[:, some])
            linear = [layer for layer in layers if not isinstance(layer, Function)]
            norms = norms_of([layer.squares() for layer in linear] if clip is not None else [])
            delta = self._change(linear, counted(weights, norms, clip))
        return Learnt(delta, (losses / (share > 0).sum(1)).numpy(), norms)

    def _rows(self, pace: Pace, examples: Sequence[Examples], seeds: Sequence[int], *, whole: bool) -> tuple[Seen, Tensor, Tensor]:
        """Features, and in the order in which each client sees its rows targets and what a row counts in its batch; padding counts nothing."""
        sizes = [own.targets.shape[0] for own in examples]
        flat = [own.features if own.features.ndim == 2 else own.features.flatten(1) for own in examples]
        alike = {(own.targets.ndim, own.targets.dtype, rows.shape[1], rows.dtype) for own, rows in zip(examples, flat, strict=True)}
        if alike != {(1, examples[0].targets.dtype, self._width, torch.float32)}:
            raise UpdateRejected("the rows of a client do not fit the model")
        orders = np.stack([ordered(self._shuffle, seed, rows, pace.steps, pace.batch) for seed, rows in zip(seeds, sizes, strict=True)])
        targets = taken([own.targets for own in examples], orders, examples[0].targets.new_empty(orders.shape))
        if self._outputs > 1 and (targets.is_floating_point() or int(targets.min()) < 0 or int(targets.max()) >= self._outputs):
            raise UpdateRejected("the labels of a client do not fit the model")
        kinds = {rows: shares(rows, pace.steps, pace.batch) for rows in set(sizes)}
        return self._seen(pace, flat, orders, whole=whole), targets, torch.stack([kinds[rows] for rows in sizes])

    def _seen(self, pace: Pace, flat: Sequence[Tensor], orders: Orders, *, whole: bool) -> Seen:
        """The features as the steps take them."""
        sizes, count = [len(rows) for rows in flat], pace.steps * pace.batch
        # Of more rows than the steps take only those that they take are ever in memory.
        if max(sizes) > count or count < min(sizes) + pace.batch:
            return Once(self._first(taken(flat, orders, self._room.shaped(*orders.shape, self._width))), whole)
        rows = side_by_side(flat, self._room.shaped(len(flat), max(sizes), self._width))
        return Again(self._first(rows), torch.from_numpy(orders))

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
            if factors(stage, pace, first=not layers):
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

    def _change(self, layers: Sequence[Layer], weights: Tensor) -> Vector:
        """The weighted mean of the model changes."""
        flat = self._schema.zeros()
        parts = self._schema.unpack(flat)
        dense = [stage for stage in self._stages if isinstance(stage, Dense)]
        for stage, layer in zip(dense, layers, strict=True):
            weight, bias = layer.change(weights)
            parts[stage.weight][:] = weight.numpy()
            if stage.bias:
                parts[stage.bias][:] = bias.numpy()
        return flat


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T`` by torch's own kernel."""
    return rows @ weight.t()
