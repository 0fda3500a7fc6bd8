"""The one module that a learner keeps, and what of its state travels."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedscale.errors import AppError
from fedscale.vector import Arrays

NORMALIZING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Resident:
    """A module on its device, with its state at hand.

    Args:
        module: the module, which is moved.
        device: where it lives.

    ``shared`` is the part of its state that travels, ``trained`` what the optimiser moves; ``normalized`` says whether
    it has batch norm.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module.to(device), device
        self.shared = shared_state(self.module)
        self.trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.normalized = any(isinstance(part, NORMALIZING) for part in self.module.modules())
        self._local = [(buffer, buffer.clone()) for name, buffer in self.module.named_buffers() if name not in self.shared]

    def load(self, arrays: Arrays) -> None:
        """Copy a model into the module and put everything local back to where it began."""
        theirs, ours = ({name: tuple(array.shape) for name, array in state.items()} for state in (arrays, self.shared))
        if theirs != ours:
            name = next(name for name in (*ours, *theirs) if theirs.get(name) != ours.get(name))
            raise AppError(
                "the app's model is not the one that is being trained",
                why=f"tensor '{name}' has shape {ours.get(name, 'none')} here and {theirs.get(name, 'none')} there",
                hint="the model must not depend on the site or on chance",
            )
        with torch.no_grad():
            for name, tensor in self.shared.items():
                tensor.copy_(tensor_of(arrays[name]))
            for buffer, first in self._local:
                buffer.copy_(first)

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision: half floats on CUDA, bfloat16 elsewhere."""
        return torch.autocast(self.device.type, torch.float16 if self.device.type == "cuda" else torch.bfloat16)


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over an array's memory, or over a copy's where it is read-only, which torch does not have."""
    return torch.from_numpy(np.require(array, requirements="W"))


def shared_state(module: nn.Module) -> dict[str, Tensor]:
    """The entries of a module's state that travel, sharing its memory."""
    return {name: entry for name, entry in module.state_dict().items() if isinstance(entry, Tensor) and entry.is_floating_point()}


def arrays_of(state: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Copies of tensors as arrays of the same dtype; numpy has no bfloat16, which becomes float32."""
    return {
        name: tensor.to("cpu", torch.float32 if tensor.dtype is torch.bfloat16 else tensor.dtype, copy=True).numpy() for name, tensor in state.items()
    }
