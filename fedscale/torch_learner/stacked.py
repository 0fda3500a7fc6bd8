"""Trains many clients of a small model at once, whatever its layers: their weights stacked, one kernel for all by ``torch.func.vmap``.

A small model's step is bound by what it costs to call kernels, which so is paid once for many clients. On a processor a larger
one is bound by its arithmetic or by the traffic of everybody's weights and would lose; the limits were measured, see decision
0008. They are facts about the model and not about a machine, so that the same plan takes the same form everywhere. A GPU has
room and arithmetic for many more: there a client's step may do more, and as many go together as its memory has room for.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils.flop_counter import FlopCounterMode

from fedscale.causes import attempted, is_memory
from fedscale.errors import UpdateRejected
from fedscale.learner import Training
from fedscale.sampling import Shuffle
from fedscale.torch_learner import recurrent
from fedscale.torch_learner.blocks import MOST_CLIENTS, MOST_FEATURES, Learnt, counted, norms_of, part_of
from fedscale.torch_learner.devices import Footprint, exact, room
from fedscale.torch_learner.examples import Examples, aligned
from fedscale.torch_learner.factored import squares
from fedscale.torch_learner.resident import arrays_of, shared_state, tensor_of
from fedscale.torch_learner.steps import Steps
from fedscale.vector import Packed, Schema

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

MOST_PARAMETERS = 40_000
MOST_WORK = 3_000_000  # floating-point operations of a batch's forward pass, as torch counts them
# The same on a GPU: what a small one of 8 TFLOP/s does in a quarter of a millisecond, while a step waits for its kernels. Not measured.
MOST_WORK_ON_GPU = 2_000_000_000
ROW, FLOAT = 4, 4  # a row's label and its places in the order of the steps, in floats; bytes of a float
MOST_ON_GPU = 1024  # clients that go together where only memory sets a limit


class Stacked:
    """Trains clients that have the same number of rows.

    Args:
        module: the model, freshly built.
        loss: as the app has it.
        training: how to train, in full precision.
        proximal: FedProx's mu.
        device: where to compute.
        width: numbers in a row of features.

    ``held`` is how many bytes a client takes but for its rows, once that was seen.
    """

    def __init__(self, module: nn.Module, loss: Loss, training: Training, proximal: float, device: torch.device, width: int) -> None:
        self._module, self._loss, self._training, self._proximal = module.to(device).train(), loss, training, proximal
        self._device, self._width, self._shuffle = device, width, Shuffle()
        self._schema = Schema.of(arrays_of(shared_state(module)))
        self.held, self._fitting = 0, MOST_CLIENTS if device.type == "cpu" else MOST_ON_GPU

    def first(self) -> Packed:
        """The model as it was built."""
        return self._schema.unpack(self._schema.pack(arrays_of(shared_state(self._module))))

    def alike(self, rows: int) -> int:
        """Clients may be trained together where this is equal."""
        return rows

    def block(self, clients: int) -> int:
        """How many of so many clients are done in one go: on a GPU, which one process fills, all that can go together."""
        return part_of(clients) if self._device.type == "cpu" else self._fitting

    def most(self, rows: int) -> int:
        """How many clients go together: as many as stay in the cache, whatever the machine; on a GPU as many as find room."""
        if self._device.type == "cpu":
            return max(1, min(self._fitting, MOST_FEATURES // max(self._schema.size, rows * self._width)))
        # A power of two, so that a few bytes more or less of what was measured make no other blocks.
        return 1 << min(self._fitting, max(1, room(self._device) // (self.held + rows * (self._width + ROW) * FLOAT))).bit_length() - 1

    def watch(self, few: Examples) -> None:
        """Train two clients with a few rows, to see that it can be done and what a client takes of a device's memory."""
        with exact(self._device), Footprint() as footprint:
            self._trained(self.first(), (few, few), (0, 1), (1.0, 1.0), None)
        self.held = footprint.peak // 2

    def train(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float], clip: float | None = None) -> Learnt:
        """Train clients from a model on; in halves where memory runs out, and in no larger parts from then on.

        Raises:
            AppError, UpdateRejected: as a client alone, or because the clients do not go together.
        """
        try:
            with exact(self._device):
                return self._trained(model, examples, seeds, weights, clip)
        except RuntimeError as error:
            if len(examples) == 1 or not is_memory(error):
                raise
        # Not where the error is caught: it holds on to all that was computed.
        self._fitting = half = len(examples) // 2
        parts = [self.train(model, examples[some], seeds[some], weights[some], clip) for some in (slice(half), slice(half, None))]
        return joined(parts, (sum(weights[:half]), sum(weights[half:])))

    def _trained(self, model: Packed, examples: Sequence[Examples], seeds: Sequence[int], weights: Sequence[float], clip: float | None) -> Learnt:
        """The same in one go."""
        flat = tensor_of(model.vector).to(self._device)
        shared = {name: flat[at : at + part.size].view(part.shape) for name, (part, at) in model.schema.places.items()}
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
        # Added up where they are: each answer of a GPU has to be waited for.
        norms = norms_of([torch.stack([squares(change) for change in changes]).sum(0)] if clip is not None else [])
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


def joined(parts: Sequence[Learnt], weights: Sequence[float]) -> Learnt:
    """What clients have learnt who were trained in parts; ``weights`` is what each part counts in the mean."""
    delta = np.average([part.delta for part in parts], axis=0, weights=weights).astype(np.float32)
    return Learnt(delta, np.concatenate([part.losses for part in parts]), np.concatenate([part.norms for part in parts]))


def stacked_for(
    module: nn.Module, loss: Loss, training: Training, proximal: float, device: torch.device, sample: Examples
) -> tuple[Stacked | None, str]:
    """What trains many clients of a small model at once; or nothing and why not.

    Args:
        module: the model, freshly built.
        sample: a client's rows, whose shape and number say what a batch costs.
    """
    if why := _unfit(module, training, device):
        return None, why
    few = Examples(sample.features[: training.batch_size], sample.targets[: training.batch_size])
    tried = attempted(lambda: _tried(module, loss, training, proximal, device, few))
    if isinstance(tried, Exception):
        return None, f"the model cannot be trained for many at once: {type(tried).__name__}"
    stacked, work = tried
    if work > (MOST_WORK if device.type == "cpu" else MOST_WORK_ON_GPU):
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
        stacked.watch(few)
    return stacked, counter.get_total_flops()


def _unfit(module: nn.Module, training: Training, device: torch.device) -> str:
    """Why a model is not for this form, as far as its parts show; empty where nothing is against it."""
    parameters = dict(module.named_parameters())
    if training.amp:
        return "mixed precision is asked for"
    if list(module.buffers()) or set(module.state_dict()) != set(parameters):
        return "the model has buffers, or weights that are shared"
    if not all(entry.requires_grad and entry.dtype is torch.float32 for entry in parameters.values()):
        return "a parameter is frozen or not float32"
    if device.type == "cpu" and sum(entry.numel() for entry in parameters.values()) > MOST_PARAMETERS:
        return "everybody's weights would cost more than they save"
    layers = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    return "" if all(map(recurrent.handles, layers)) else "there is no kernel for such recurrent layers of many"


def _taken(values: Tensor, rows: Tensor) -> Tensor:
    """The rows of each client, ``(clients, batch, ...)``."""
    places = rows + torch.arange(len(rows), device=rows.device).mul_(values.shape[1]).unsqueeze(1)
    return values.flatten(0, 1).index_select(0, places.flatten()).view(*rows.shape, *values.shape[2:])
