"""Trains many clients of a small model at once, whatever its layers: their weights stacked, one kernel for all by ``torch.func.vmap``.

A small model's step is bound by what it costs to call kernels, which so is paid once for many clients. A larger one is bound by
its arithmetic or by the traffic of everybody's weights and would lose; the limits were measured, see decision 0008. They are
facts about the model and not about a machine, so that the same plan takes the same form everywhere.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils.flop_counter import FlopCounterMode

from fedscale.causes import attempted
from fedscale.errors import UpdateRejected
from fedscale.learner import Training
from fedscale.sampling import Shuffle
from fedscale.torch_learner import recurrent
from fedscale.torch_learner.blocks import MOST_CLIENTS, MOST_FEATURES, Learnt, counted, norms_of
from fedscale.torch_learner.examples import Examples, aligned
from fedscale.torch_learner.factored import squares
from fedscale.torch_learner.resident import arrays_of, shared_state, tensor_of
from fedscale.torch_learner.steps import Steps
from fedscale.vector import Packed, Schema

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

MOST_PARAMETERS = 40_000
MOST_WORK = 3_000_000  # floating-point operations of a batch's forward pass, as torch counts them


class Stacked:
    """Trains clients that have the same number of rows.

    Args:
        module: the model, freshly built.
        loss: as the app has it.
        training: how to train, in full precision.
        proximal: FedProx's mu.
        device: where to compute.
        width: numbers in a row of features.
    """

    def __init__(self, module: nn.Module, loss: Loss, training: Training, proximal: float, device: torch.device, width: int) -> None:
        self._module, self._loss, self._training, self._proximal = module.to(device).train(), loss, training, proximal
        self._device, self._width, self._shuffle = device, width, Shuffle()
        self._schema = Schema.of(arrays_of(shared_state(module)))

    def first(self) -> Packed:
        """The model as it was built."""
        return self._schema.unpack(self._schema.pack(arrays_of(shared_state(self._module))))

    def alike(self, rows: int) -> int:
        """Clients may be trained together where this is equal."""
        return rows

    def most(self, rows: int) -> int:
        """How many clients go together: as many as stay in the cache, whatever the machine."""
        return max(1, min(MOST_CLIENTS, MOST_FEATURES // max(self._schema.size, rows * self._width)))

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float], clip: float | None = None) -> Learnt:
        """Train clients from a model on.

        Raises:
            AppError, UpdateRejected: as a client alone, or because the clients do not go together.
        """
        shared = {name: tensor_of(model[name]).to(self._device) for name in model}
        stacked = {name: entry.expand(len(examples), *entry.shape).clone() for name, entry in shared.items()}
        features, targets, classes = self._side_by_side(examples)
        steps = Steps(list(stacked.values()), self._training.optimizer, self._proximal)
        descent = vmap(grad_and_value(lambda own, rows, wanted: self._objective(own, rows, wanted, classes)))
        losses, seen = torch.zeros(len(examples), dtype=torch.float64, device=self._device), 0
        for rows in self._batches(features.shape[1], seeds):
            gradients, means = descent(stacked, _taken(features, rows), _taken(targets, rows))
            steps.follow(list(gradients.values()))
            losses += means.detach().double() * rows.shape[1]
            seen += rows.shape[1]
        changes = [entry.sub_(shared[name]) for name, entry in stacked.items()]
        norms = norms_of([squares(change) for change in changes] if clip is not None else [])
        shares = counted(weights, norms, clip).to(self._device)
        delta = torch.cat([shares @ change.flatten(1) for change in changes]).cpu().numpy()
        return Learnt(delta, (losses / seen).cpu().numpy(), norms)

    def _objective(self, own: dict[str, Tensor], rows: Tensor, wanted: Tensor, classes: int) -> Tensor:
        """The loss of one client's batch."""
        outputs = functional_call(self._module, own, (rows,))
        return self._loss(*aligned(outputs, wanted, classes))

    def _side_by_side(self, examples: Sequence[Examples]) -> tuple[Tensor, Tensor, int]:
        """Features, targets and the number of classes of clients whose rows have one shape."""
        shapes = {(own.features.shape, own.features.dtype, own.targets.shape, own.targets.dtype) for own in examples}
        if len(shapes) > 1:
            raise UpdateRejected("the rows of a client are of another shape")
        features, targets = (torch.stack(parts).to(self._device) for parts in ([own.features for own in examples], [own.targets for own in examples]))
        return features, targets, max(own.classes for own in examples)

    def _batches(self, rows: int, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Row numbers of one step after the other, shape ``(clients, batch)``: those that each client draws alone."""
        epochs, size = self._training.epochs, self._training.batch_size
        orders = torch.empty(epochs, len(seeds), rows, dtype=torch.int64)
        for at, seed in enumerate(seeds):
            self._shuffle.seed(seed)
            for epoch in range(epochs):
                orders[epoch, at] = torch.from_numpy(self._shuffle.draw(rows))
        yield from islice((batch for epoch in orders.to(self._device) for batch in epoch.split(size, 1)), self._training.max_steps)


def stacked_for(
    module: nn.Module, loss: Loss, training: Training, proximal: float, device: torch.device, sample: Examples
) -> tuple[Stacked | None, str]:
    """What trains many clients of a small model at once; or nothing and why not.

    Args:
        module: the model, freshly built.
        sample: a client's rows, whose shape and number say what a batch costs.
    """
    if why := _unfit(module, training):
        return None, why
    few = Examples(sample.features[: training.batch_size], sample.targets[: training.batch_size])
    tried = attempted(lambda: _tried(module, loss, training, proximal, device, few))
    if isinstance(tried, Exception):
        return None, f"the model cannot be trained for many at once: {type(tried).__name__}"
    stacked, work = tried
    if work > MOST_WORK and device.type == "cpu":
        return None, "a step of the model is bound by its arithmetic"
    return stacked, ""


def _tried(module: nn.Module, loss: Loss, training: Training, proximal: float, device: torch.device, few: Examples) -> tuple[Stacked, int]:
    """What trains many clients, after it has trained two with few rows, and the FLOP of a batch; raises whatever the app's code does."""
    # An app may hand out one module again and again: what is built into it here is not for training alone, or for evaluation.
    module = copy.deepcopy(module)
    recurrent.install(module)
    stacked = Stacked(module, loss, training, proximal, device, few.features[0].numel())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about kernels without a rule of their own
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(few.features.to(device))
        stacked.train(stacked.first(), (few, few), (0, 1), (1.0, 1.0))
    return stacked, counter.get_total_flops()


def _unfit(module: nn.Module, training: Training) -> str:
    """Why a model is not for this form, as far as its parts show; empty where nothing is against it."""
    parameters = dict(module.named_parameters())
    if training.amp:
        return "mixed precision is asked for"
    if list(module.buffers()) or set(module.state_dict()) != set(parameters):
        return "the model has buffers, or weights that are shared"
    if not all(entry.requires_grad and entry.dtype is torch.float32 for entry in parameters.values()):
        return "a parameter is frozen or not float32"
    if sum(entry.numel() for entry in parameters.values()) > MOST_PARAMETERS:
        return "everybody's weights would cost more than they save"
    layers = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    return "" if all(map(recurrent.handles, layers)) else "there is no kernel for such recurrent layers of many"


def _taken(values: Tensor, rows: Tensor) -> Tensor:
    """The rows of each client, ``(clients, batch, ...)``."""
    places = rows + torch.arange(len(rows), device=rows.device).mul_(values.shape[1]).unsqueeze(1)
    return values.flatten(0, 1).index_select(0, places.flatten()).view(*rows.shape, *values.shape[2:])
