"""A site's rows as tensors, and which outputs fit which labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from fedscale.data import not_finite
from fedscale.errors import AppError, DataError
from fedscale.torch_learner.devices import room
from fedscale.torch_learner.resident import tensor_of


@dataclass(frozen=True)
class Examples:
    """Rows as tensors, on the host unless moved, in the dtypes torch computes with: float32, and int64 for whole numbers.

    Args:
        features: shape ``(n, ...)``.
        targets: shape ``(n,)`` or ``(n, ...)``.
    """

    features: Tensor
    targets: Tensor

    @cached_property
    def classes(self) -> int:
        """The largest label plus one, or 0 where labels are not whole numbers."""
        return 0 if self.targets.is_floating_point() else int(self.targets.max()) + 1

    @classmethod
    def of(cls, features: Tensor, targets: Tensor) -> Examples:
        """Rows from tensors of any dtype; targets of shape ``(n, 1)`` become ``(n,)``.

        Raises:
            DataError: there are no rows, or not one label for each.
        """
        rows = targets.shape[0]
        if not rows or rows != features.shape[0]:
            raise DataError(f"{len(features)} rows and {rows} labels for this phase", why="one label a row and at least one row are needed")
        targets = targets.float() if targets.is_floating_point() else targets.long()
        targets = targets.reshape(-1) if targets.shape == (rows, 1) else targets
        return cls(features.float() if features.is_floating_point() else features, targets)

    @classmethod
    def of_arrays(cls, features: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Examples:
        """Rows from arrays, without a copy where the dtypes agree."""
        return cls.of(tensor_of(features), tensor_of(targets))

    @classmethod
    def of_dataset(cls, dataset: TorchDataset[Any]) -> Examples:
        """Rows of a map-style torch dataset of ``(features, label)``, read once and stacked.

        Raises:
            DataError: it has no length, or an item is no pair.
        """
        if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
            return cls.of(*dataset.tensors)
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise DataError("a torch dataset without a length", hint="give a map-style dataset, with __len__ and __getitem__")
        items = [dataset[at] for at in range(len(dataset))]
        if not items or not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            raise DataError("a torch dataset without rows of (features, label)", hint="return a pair from __getitem__")
        return cls.of(*(torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*items, strict=True)))

    def require_finite(self, given: Examples, columns: Sequence[str] = ()) -> None:
        """Refuse rows with numbers that are not finite.

        Args:
            given: the rows before the app prepared them, or these.
            columns: the names of their features, where they have any.

        Raises:
            DataError: the given rows hold them; names columns or positions, and neither a row nor a value.
            AppError: the app made them of finite ones.
        """
        if not not_finite(self.features.cpu().numpy(), self.targets.cpu().numpy()):
            return
        if told := not_finite(given.features.cpu().numpy(), given.targets.cpu().numpy(), columns):
            raise DataError(" and ".join(told), hint="fill such values in, or leave their rows out")
        raise AppError(
            "App.prepare makes NaN or infinite numbers of finite ones", where="App.prepare", hint="look for divisions by zero and logarithms"
        )

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.targets.device

    def on(self, device: torch.device) -> Examples:
        """The rows on a device, where all of them find room there; else as they are, for each batch to go by itself."""
        if device == self.device or (device.type != "cpu" and self.features.nbytes + self.targets.nbytes > room(device)):
            return self
        moved = Examples(self.features.to(device), self.targets.to(device))
        vars(moved)["classes"] = self.classes  # known here, and the device would have to be waited for
        return moved

    def __len__(self) -> int:
        """Number of rows."""
        return self.targets.shape[0]


def aligned(outputs: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Outputs and targets that belong together, so that no loss or metric broadcasts by accident.

    One output an example loses its second dimension; where both have one shape, the targets take the outputs' dtype;
    otherwise the targets are classes and the outputs have one more dimension.
    """
    rows = targets.shape[0]
    if outputs.ndim == 0 or outputs.shape[0] != rows:
        raise AppError(f"the model returned shape {tuple(outputs.shape)} for {rows} examples", why="one row for each is expected")
    if outputs.shape == (rows, 1) and targets.ndim == 1:
        outputs = outputs.reshape(rows)
    if outputs.shape == targets.shape:
        return outputs, targets.to(outputs.dtype)
    if targets.is_floating_point() or outputs.ndim != targets.ndim + 1:
        raise AppError(
            f"outputs of shape {tuple(outputs.shape)} do not fit labels of shape {tuple(targets.shape)} and dtype {targets.dtype}",
            why="equal shapes are expected, or whole-number labels and one more dimension of outputs",
        )
    if targets.ndim == 1 and classes > outputs.shape[1]:
        raise AppError(f"a label is too large for the model's {outputs.shape[1]} outputs", hint="number classes from 0 and give each an output")
    return outputs, targets
