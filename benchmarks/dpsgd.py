"""One step of private training beside a plain one and beside Opacus 1.6: a small CNN, 64 images, one thread.

Clipping, noise and the optimiser's step are all in it, for Opacus too; its noise is not cryptographic. Times are of the processor,
the best of several that take turns, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import Figure
from fedscale.learner import LocalOptimizer, Private
from fedscale.torch_learner import one_thread
from fedscale.torch_learner.clipping import Objective, way_for
from fedscale.torch_learner.examples import aligned
from fedscale.torch_learner.private import PrivateSteps, Units
from fedscale.torch_learner.resident import Resident
from fedscale.torch_learner.steps import Steps

BATCH, CLASSES, REPEAT = 64, 10, 8
MOST = 3.5
PARAMETERS = 545_098


def measure() -> Iterator[Figure]:
    """Milliseconds of each step, and how many plain steps that is."""
    features = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(BATCH) % CLASSES
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Opacus, about hooks
        steps = {
            "plain": _plain(features, targets),
            "ours": _ours(features, targets),
            "opacus ghost": _opacus(features, targets, "ghost"),
            "opacus hooks": _opacus(features, targets, "hooks"),
        }
        taken = _best(steps)
    for name, seconds in taken.items():
        yield Figure(f"a step, {name}", 1000 * seconds, "ms")
        if name != "plain":
            yield Figure(f"plain steps in one, {name}", seconds / taken["plain"], "x", MOST if name == "ours" else None)


def _best(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least processor time of each, after one to warm up."""
    taken = dict.fromkeys(steps, float("inf"))
    for attempt in range(REPEAT + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if attempt:
                taken[name] = min(taken[name], time.process_time() - began)
    return taken


def _model() -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(1)
    module = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, CLASSES)),
    )
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS
    return module


def _plain(features: Tensor, targets: Tensor) -> Callable[[], object]:
    """A step of the learner without privacy."""
    resident = Resident(_model(), torch.device("cpu"))
    steps = Steps(resident.trained, LocalOptimizer())
    return lambda: steps.descend(functional.cross_entropy(resident.module(features), targets))


def _ours(features: Tensor, targets: Tensor) -> Callable[[], object]:
    """A step of the learner with privacy; a sample of everybody, so that all batches are of one size."""
    resident = Resident(_model(), torch.device("cpu"))
    objective = Objective(resident.module, lambda outputs, wanted: aligned(outputs, wanted, CLASSES), functional.cross_entropy)
    way, private = way_for(objective, features[:4], targets[:4]), Private("record", "dpsgd", 1.0, 1.0, 1.0, 1, float(BATCH))
    assert way.name == "ghost"
    noisy = PrivateSteps(objective, way, lambda _: (features.detach(), targets), Units.of(None, BATCH), private)
    steps = Steps(resident.trained, LocalOptimizer())
    return lambda: steps.follow(noisy.noisy(0))


def _opacus(features: Tensor, targets: Tensor, mode: str) -> Callable[[], object]:
    """A step of Opacus's engine in one of its modes."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    module = _model()
    made = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.05),
        data_loader=DataLoader(TensorDataset(features, targets), BATCH),
        criterion=nn.CrossEntropyLoss(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    private, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(private(features), targets).backward()
        optimizer.step()

    return step
