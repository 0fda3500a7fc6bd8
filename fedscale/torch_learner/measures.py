"""The metrics every app has, as sums over a batch.

``outputs`` are logits: of class 1, shape ``(n,)``, or of each class, shape ``(n, k)``. ``targets`` have shape ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedscale.errors import AppError
from fedscale.metrics import Sums, score_histogram


def total(values: Tensor) -> Sums:
    """The sum of all values, shape ``(1,)``."""
    return np.array([float(values.detach().sum(dtype=torch.float64))])


def _margin(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Logits of the positive class, shape ``(n,)``, from one output an example or two."""
    if targets.ndim != 1 or outputs.shape[1:] not in ((), (2,)):
        raise AppError(f"metric '{name}' needs one output or two an example", why=f"the model returned shape {tuple(outputs.shape)}")
    if outputs.ndim == 1 and not ((targets == 0) | (targets == 1)).all():
        raise AppError(f"metric '{name}' needs labels 0 and 1", hint="choose other metrics for other labels")
    return outputs if outputs.ndim == 1 else outputs[:, 1] - outputs[:, 0]


def _classes(outputs: Tensor, targets: Tensor) -> bool:
    """Whether these are scores of more than two classes."""
    return outputs.ndim == 2 and targets.ndim == 1 and outputs.shape[1] > 2


def _accuracy(outputs: Tensor, targets: Tensor) -> Sums:
    """How many are classified right; a logit above 0 means class 1."""
    if _classes(outputs, targets):
        return total(outputs.argmax(1) == targets)
    return total((_margin(outputs, targets, "accuracy") > 0) == (targets == 1))


def _brier(outputs: Tensor, targets: Tensor) -> Sums:
    """Squared error of the predicted probability of class 1, or summed over the classes where there are more than two (Brier 1950)."""
    if _classes(outputs, targets):
        return total((outputs.softmax(1) - nn.functional.one_hot(targets, outputs.shape[1])).square())
    return total((_margin(outputs, targets, "brier").sigmoid() - targets).square())


def _auc(outputs: Tensor, targets: Tensor) -> Sums:
    """Score histograms, see ``fedscale.metrics``."""
    return score_histogram(_margin(outputs, targets, "auc").double().cpu().numpy(), targets.cpu().numpy())


MEASURES: Mapping[str, Callable[[Tensor, Tensor], Sums]] = {"accuracy": _accuracy, "auc": _auc, "brier": _brier}
