from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fedscale.learner import LocalOptimizer
from fedscale.torch_learner import one_thread
from fedscale.torch_learner.steps import Steps

SETTINGS = [
    {"name": "sgd", "lr": 0.1},
    {"name": "sgd", "lr": 0.1, "weight_decay": 0.01},
    {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"name": "adam", "lr": 0.01},
    {"name": "adam", "lr": 0.01, "weight_decay": 0.1},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


def model() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def losses(module: nn.Module) -> Iterator[Tensor]:
    """Ten batches' losses, always the same."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        yield (module(torch.randn(7, 6, generator=generator)) - torch.randn(7, 2, generator=generator)).square().mean()


def theirs(wanted: LocalOptimizer) -> list[Tensor]:
    """Parameters after ten steps of torch.optim."""
    module = model()
    kinds: dict[str, Callable[..., Any]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    more = {"momentum": wanted.momentum} if wanted.name == "sgd" else {}
    optimizer = kinds[wanted.name](module.parameters(), wanted.lr, weight_decay=wanted.weight_decay, **more)
    for loss in losses(module):
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return [parameter.detach() for parameter in module.parameters()]


def ours(wanted: LocalOptimizer, proximal: float = 0.0, scaler: torch.amp.GradScaler | None = None) -> list[Tensor]:
    """Parameters after ten of our steps."""
    module = model()
    steps = Steps(list(module.parameters()), wanted, proximal)
    for loss in losses(module):
        steps.clear()
        if scaler is None:
            torch.autograd.backward(loss)
            steps.step()
        else:
            torch.autograd.backward(scaler.scale(loss))
            scaler.step(cast("torch.optim.Optimizer", steps))
            scaler.update()
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_steps_are_those_of_torch(setting: dict[str, Any]) -> None:
    wanted = LocalOptimizer.model_validate(setting)
    assert all(torch.equal(a, b) for a, b in zip(ours(wanted), theirs(wanted), strict=True))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_a_gradient_scaler_changes_nothing_but_rounding(setting: dict[str, Any]) -> None:
    wanted = LocalOptimizer.model_validate(setting)
    scaled = ours(wanted, 0.1, torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(scaled, ours(wanted, 0.1), strict=True))


def test_a_gradient_scaler_skips_steps_that_overflow() -> None:
    module = model()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    steps, scaler = Steps(list(module.parameters()), LocalOptimizer()), torch.amp.GradScaler("cpu")
    torch.autograd.backward(scaler.scale(module(torch.full((1, 6), torch.inf)).sum()))
    scaler.step(cast("torch.optim.Optimizer", steps))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def test_parameters_without_a_gradient_stay_and_keep_their_place() -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    steps = Steps(parameters, LocalOptimizer(lr=1.0, momentum=0.5, weight_decay=0.1), proximal=1.0)
    for at in (0, 2, 0):
        steps.clear()
        parameters[at].grad = torch.full((2,), 0.5)
        steps.step()
    # First step: 1 - (0.5 + 0.1) = 0.4; second: velocity 0.3 + (0.5 - 0.6 + 0.04) = 0.24, so 0.16.
    assert torch.allclose(parameters[0], torch.full((2,), 0.16))
    assert torch.equal(parameters[1], torch.ones(2))
    assert torch.allclose(parameters[2], torch.full((2,), 0.4))


def test_clear_forgets_gradients() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    Steps([parameter], LocalOptimizer()).clear()
    assert parameter.grad is None


def test_proximal_starts_from_where_the_parameters_are() -> None:
    parameter = nn.Parameter(torch.ones(2))
    steps = Steps([parameter], LocalOptimizer(lr=0.1), proximal=2.0)
    with torch.no_grad():
        parameter.add_(1)
    parameter.grad = torch.zeros(2)
    steps.step()
    assert torch.allclose(parameter, torch.full((2,), 2 - 0.1 * 2.0))


def test_no_warning_comes_from_the_functions_under_an_underscore() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ours(LocalOptimizer(name="adamw", weight_decay=0.1), 0.1)) == 4
