"""Handwritten digits spread over hundreds of devices that see different ones."""

import torch
from sklearn.datasets import load_digits

from fedscale import App
from fedscale.data import Population, from_arrays


def model() -> torch.nn.Module:
    """A small network."""
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


app = App(model=model, loss=torch.nn.functional.cross_entropy, metrics=["accuracy"])


def population(clients: int | None, seed: int) -> Population:
    """So many devices, by default 300."""
    x, y = load_digits(return_X_y=True)
    return from_arrays(x / 16, y).partition("dirichlet", clients or 300, seed, alpha=1.0)
