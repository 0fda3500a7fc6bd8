"""Small apps, rows and pieces of work for the tests of the torch learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale.data import Dataset, from_arrays
from fedscale.learner import App, LocalOptimizer, Phase, Training, Work
from fedscale.metrics import Sums
from fedscale.torch_learner import TorchLearner
from fedscale.vector import Arrays

Metrics = Sequence[str] | Mapping[str, Callable[[Tensor, Tensor], Any]]


def classes(rows: int = 40, kinds: int = 3, width: int = 4, seed: int = 1) -> Dataset:
    """Separable classes: one feature tells each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % kinds
    features = rng.normal(size=(rows, width))
    features[np.arange(rows), labels] += 3
    return from_arrays(features, labels)


def linear(outputs: int = 3, width: int = 4) -> nn.Module:
    """One linear layer."""
    return nn.Linear(width, outputs)


def app(model: Callable[[], Any] = linear, loss: Callable[..., Any] = functional.cross_entropy, metrics: Metrics = (), **rest: Any) -> App:
    """An app, by default for ``classes``."""
    return App(model=model, loss=loss, metrics=metrics, **rest)


def binary(metrics: Metrics = ()) -> App:
    """An app with one logit."""
    return app(lambda: nn.Linear(4, 1), functional.binary_cross_entropy_with_logits, metrics)


def training(lr: float = 0.1, name: str = "sgd", *, momentum: float = 0.0, weight_decay: float = 0.0, **rest: Any) -> Training:
    """Local training on the processor."""
    optimizer = LocalOptimizer.model_validate({"name": name, "lr": lr, "momentum": momentum, "weight_decay": weight_decay})
    return Training.model_validate({"device": "cpu", "batch_size": 8, **rest, "optimizer": optimizer})


def first(learner: TorchLearner, seed: int = 5) -> Arrays:
    """The first model."""
    arrays = learner.run(Work(Phase.INIT, 0, seed, None, None, training())).arrays
    assert arrays is not None
    return arrays


def train(learner: TorchLearner, data: Any, arrays: Arrays | None = None, **rest: Any) -> tuple[Arrays, float]:
    """The trained model and the mean loss."""
    result = learner.run(to_train(learner, data, arrays, **rest))
    assert result.arrays is not None
    return result.arrays, float(result.metrics["loss"][0]) / result.examples


def to_train(learner: TorchLearner, data: Any, arrays: Arrays | None = None, **rest: Any) -> Work:
    """A piece of training."""
    values = {"seed": 7, "training": training(), **rest}
    return Work(phase=Phase.TRAIN, number=1, arrays=first(learner) if arrays is None else arrays, data=data, **values)


def evaluate(learner: TorchLearner, data: Any, arrays: Arrays | None = None, metrics: Sequence[str] = (), **rest: Any) -> dict[str, Sums]:
    """The metric sums of an evaluation."""
    model = first(learner) if arrays is None else arrays
    work = Work(Phase.EVALUATE, 1, 3, model, data, Training.model_validate({"device": "cpu", "batch_size": 4, **rest}), ("loss", *metrics))
    result = learner.run(work)
    assert result.arrays is None
    return dict(result.metrics)


def same(left: Arrays, right: Arrays) -> bool:
    """Whether two models are equal, bit for bit."""
    return list(left) == list(right) and all(np.array_equal(left[name], right[name]) for name in left)


def state(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """A module's state as arrays."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


class Rows(torch.utils.data.Dataset[tuple[Any, Any]]):
    """A map-style torch dataset that counts how often a row is read."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.reads = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.data.x[at], int(self.data.y[at])
