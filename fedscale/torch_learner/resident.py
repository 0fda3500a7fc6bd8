"""The one module that a learner keeps, and what of its state travels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedscale.errors import AppError
from fedscale.torch_learner import kernels
from fedscale.torch_learner.devices import half
from fedscale.torch_learner.substitutes import FULL, MIXED, Substitutes
from fedscale.vector import Arrays, Packed, Schema, Vector

NORMALIZING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Resident:
    """A module on its device, with its state at hand.

    Args:
        module: the module, which is moved.
        device: where it lives.

    ``shared`` is the part of its state that travels, ``trained`` what the optimiser moves; ``normalized`` says whether
    it has batch norm, ``images`` whether it computes with images. Where all of the shared state is float32, it lies in
    one vector: loading a model is one copy, and so is taking it out.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module.to(device), device
        self.shared = shared_state(self.module)
        self.trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.normalized = any(isinstance(part, NORMALIZING) for part in self.module.modules())
        self.images = any(isinstance(part, nn.Conv2d) for part in self.module.modules())
        self._local = [(buffer, buffer.clone()) for name, buffer in self.module.named_buffers() if name not in self.shared]
        self._schema = Schema.of(arrays_of(self.shared))
        self._flat, self._turned = _flatten(self.module, self.shared, device)
        kernels.install(self.module, device)

    def load(self, arrays: Arrays) -> None:
        """Copy a model into the module and put everything local back to where it began."""
        with torch.no_grad():
            if self._flat is not None and isinstance(arrays, Packed) and self._knows(arrays.schema):
                self._flat.copy_(tensor_of(arrays.vector))
                for part, entry in self._turned:
                    entry.copy_(part)
            else:
                self._require_same(arrays)
                for name, tensor in self.shared.items():
                    tensor.copy_(tensor_of(arrays[name]))
            for buffer, first in self._local:
                buffer.copy_(first)

    def arrays(self) -> Arrays:
        """A copy of what travels."""
        if self._flat is None:
            return arrays_of(self.shared)
        for part, entry in self._turned:
            part.copy_(entry)
        return self._schema.unpack(self._flat.to("cpu", copy=True).numpy())

    @contextmanager
    def computing(self, *, mixed: bool) -> Iterator[None]:
        """While the module computes: in mixed precision or not, on the processor with the fastest forms of its functions."""
        with ExitStack() as entered:
            if mixed:
                entered.enter_context(torch.autocast(self.device.type, half(self.device)))
            if self.device.type == "cpu" and (mixed or self.images):
                entered.enter_context(Substitutes(MIXED if mixed else FULL))
            yield

    def _knows(self, schema: Schema) -> bool:
        """Whether a schema is the module's own; one that is takes its place, so that the next look is short."""
        if schema == self._schema:
            self._schema = schema
            return True
        return False

    def _require_same(self, arrays: Arrays) -> None:
        """Refuse a model with other parts than the module."""
        theirs, ours = ({name: tuple(array.shape) for name, array in state.items()} for state in (arrays, self.shared))
        if theirs != ours:
            name = next(name for name in (*ours, *theirs) if theirs.get(name) != ours.get(name))
            raise AppError(
                "the app's model is not the one that is being trained",
                why=f"tensor '{name}' has shape {ours.get(name, 'none')} here and {theirs.get(name, 'none')} there",
                hint="the model must not depend on the site or on chance",
            )


def ordinary(arrays: Arrays) -> bool:
    """Whether the numbers of a model are, see ``within_squares``."""
    parts = [arrays.vector] if isinstance(arrays, Packed) else [np.asarray(array, np.float32).reshape(-1) for array in arrays.values()]
    return all(map(within_squares, parts))


def within_squares(vector: Vector) -> bool:
    """Whether the squares of numbers have a finite sum: one pass; where it is not, one may be infinite or NaN, or just large."""
    # A product that overflows says so itself; numpy need not warn of it as well.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(vector @ vector)


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over an array's memory, or over a copy's where it is read-only, which torch does not have."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def shared_state(module: nn.Module) -> dict[str, Tensor]:
    """The entries of a module's state that travel, sharing its memory."""
    return {name: entry for name, entry in module.state_dict().items() if isinstance(entry, Tensor) and entry.is_floating_point()}


def arrays_of(state: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Copies of tensors as arrays of the same dtype; numpy has no bfloat16, which becomes float32."""
    return {
        name: tensor.to("cpu", torch.float32 if tensor.dtype is torch.bfloat16 else tensor.dtype, copy=True).numpy() for name, tensor in state.items()
    }


def _flatten(module: nn.Module, shared: dict[str, Tensor], device: torch.device) -> tuple[Tensor | None, list[tuple[Tensor, Tensor]]]:
    """Move what travels into one vector, of which it becomes views; ``None`` where dtypes differ or memory is shared.

    The kernels of convolutions keep memory of their own, channels last, where the gradient of such a kernel comes out that
    way, and so do recurrent layers on a GPU, whose library wants each in one piece; its part of the vector comes along with each.
    """
    owners = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    plain = all(name in owners and entry.dtype is torch.float32 and entry.layout is torch.strided for name, entry in shared.items())
    places = [entry.untyped_storage().data_ptr() for entry in shared.values() if entry.numel()]
    if not plain or len(set(places)) < len(places):
        return None, []
    kernel_ids = {id(part.weight) for part in module.modules() if isinstance(part, nn.Conv2d)}
    own_ids = {id(own) for part in module.modules() if isinstance(part, nn.RNNBase) and device.type != "cpu" for own in part.parameters()}
    flat = torch.empty(sum(entry.numel() for entry in shared.values()), device=device)
    turned: list[tuple[Tensor, Tensor]] = []
    for name, part in zip(shared, flat.split([entry.numel() for entry in shared.values()]), strict=True):
        here, owner = part.view(shared[name].shape), owners[name]
        here.copy_(shared[name])
        if id(owner) not in own_ids:
            owner.data = here.contiguous(memory_format=torch.channels_last) if id(owner) in kernel_ids else here
        shared[name] = owner.detach()
        if shared[name].data_ptr() != here.data_ptr():
            turned.append((here, shared[name]))
    return flat, turned
