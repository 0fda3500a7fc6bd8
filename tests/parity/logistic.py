"""Logistic regression on a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from fedscale import App
from fedscale.data import Dataset


def prepare(data: Dataset) -> Dataset:
    """Logarithms, roughly centred."""
    return replace(data, x=np.log1p(data.x).astype(np.float32) - np.float32(1.5))


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of yes or no."""
    return nn.functional.binary_cross_entropy_with_logits(scores, labels.float())


app = App(model=lambda: nn.Sequential(nn.Linear(30, 1), nn.Flatten(0)), loss=loss, metrics=["auc", "brier"], prepare=prepare)
