"""A small convolutional network with batch norm, whose running statistics travel and are averaged, on digits."""

from __future__ import annotations

from torch import nn

from fedscale import App


def model() -> nn.Module:
    """Two convolutions, each normalised, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(256, 10),
    )


app = App(model=model, loss=nn.functional.cross_entropy, metrics=["accuracy", "brier"])
