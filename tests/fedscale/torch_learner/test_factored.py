"""Layers of many clients: what each has changed and how far, against weights written down in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedscale.errors import UpdateRejected
from fedscale.learner import LocalOptimizer
from fedscale.torch_learner import one_thread
from fedscale.torch_learner.blocks import Learnt, counted, norms_of
from fedscale.torch_learner.factored import Bias, Layer, Own, Pace, Shared, squares
from fedscale.torch_learner.lineup import Once

CLIENTS, STEPS, BATCH, INPUTS, OUTPUTS = 5, 3, 4, 40, 7
SETTINGS = [
    (LocalOptimizer(lr=0.1), 0.0),
    (LocalOptimizer(lr=0.1, momentum=0.9), 0.0),
    (LocalOptimizer(lr=0.1, weight_decay=0.2), 0.0),
    (LocalOptimizer(lr=0.05, momentum=0.8, weight_decay=0.1), 0.3),
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


def plain(rows: Tensor, weight: Tensor) -> Tensor:
    return rows @ weight.t()


def steps_of(layer: Layer, rows: Tensor, gradients: Tensor) -> Layer:
    """A layer that has taken all steps."""
    for step, (some, back) in enumerate(zip(rows.split(BATCH, 1), gradients.split(BATCH, 1), strict=True)):
        layer.forward(step, some)
        layer.backward(step, back, inwards=False)
    return layer


def written_down(first: Tensor, moves: Tensor, pace: Pace) -> Tensor:
    """How far SGD takes each client from ``first`` by gradients ``(clients, steps, ...)`` in float64."""
    wanted, began = pace.optimizer, first.double()
    own, speed = began.expand(len(moves), *began.shape).clone(), torch.zeros(())
    for move in moves.unbind(1):
        gradient = move + wanted.weight_decay * own + pace.proximal * (own - began)
        speed = wanted.momentum * speed + gradient
        own = own - wanted.lr * speed
    return own - began


def drawn(offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, bias, rows around an offset, and gradients that cancel more the larger it is."""
    torch.manual_seed(3)
    rows, gradients = torch.randn(CLIENTS, STEPS * BATCH, INPUTS) + offset, torch.randn(CLIENTS, STEPS * BATCH, OUTPUTS)
    gradients = gradients - gradients.unflatten(1, (STEPS, BATCH)).mean(2, keepdim=True).expand(-1, -1, BATCH, -1).flatten(1, 2) * bool(offset)
    return torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS), rows, gradients


def layers(pace: Pace, weight: Tensor, bias: Tensor | None, rows: Tensor) -> list[Layer]:
    """The same layer in every form."""
    seen = [None, Once(rows), Once(rows, whole=True)]
    return [
        *(Shared(weight, bias, CLIENTS, pace, plain, known) for known in seen),
        *(Own(weight, bias, CLIENTS, pace, known) for known in seen[:2]),
    ]


@pytest.mark.parametrize(("optimizer", "proximal"), SETTINGS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_norms_and_clipped_sums_are_those_of_weights_written_down(optimizer: LocalOptimizer, proximal: float, offset: float, *, biased: bool) -> None:
    (weight, bias, rows, gradients), pace = drawn(offset), Pace(STEPS, BATCH, optimizer, proximal)
    by_step = [part.double().unflatten(1, (STEPS, BATCH)) for part in (gradients, rows)]
    weights = torch.rand(CLIENTS)
    changed = written_down(weight, by_step[0].mT @ by_step[1], pace)
    shifted = written_down(bias, by_step[0].sum(2), pace) * biased
    norms = (changed.square().sum((1, 2)) + shifted.square().sum(1)).sqrt()
    for made in layers(pace, weight, bias if biased else None, rows):
        layer = steps_of(made, rows, gradients)
        precise = isinstance(layer, Shared) or not offset  # weights moved one by one are rounded at every step
        assert torch.allclose(layer.squares().sqrt(), norms, rtol=1e-5 if precise else 1e-3, atol=0)
        change, moved = layer.change(weights)
        expected = torch.einsum("k,koi->oi", weights.double(), changed)
        assert torch.allclose(change.double(), expected, atol=float(expected.abs().max()) * (1e-5 if not offset else 1e-2))
        assert moved.shape == ((OUTPUTS,) if biased else (0,))
        assert not biased or torch.allclose(moved.double(), weights.double() @ shifted, atol=1e-4)


def test_a_client_that_learnt_nothing_has_no_norm() -> None:
    (weight, bias, rows, gradients), pace = drawn(), Pace(STEPS, BATCH, *SETTINGS[1])
    gradients[2] = 0
    for made in layers(pace, weight, bias, rows):
        found = steps_of(made, rows, gradients).squares()
        assert [at for at in range(CLIENTS) if not found[at]] == [2]
    assert Bias(None, CLIENTS, pace).squares().tolist() == [0.0] * CLIENTS


def test_squares_are_summed_in_float64() -> None:
    parts = torch.full((2, 3, 5), 1e25)
    assert squares(parts).tolist() == pytest.approx([15e50] * 2)
    assert norms_of([squares(parts), squares(torch.zeros(2, 4))]).tolist() == pytest.approx([15e50**0.5] * 2)
    assert norms_of([]).shape == (0,)


def test_who_is_beyond_the_clip_counts_less() -> None:
    shares = counted([1.0, 1.0, 2.0], np.array([4.0, 0.5, 1.0]), 1.0)
    assert shares.dtype is torch.float32
    assert shares.tolist() == pytest.approx([1 / 16, 1 / 4, 1 / 2], rel=2e-6)
    assert shares.tolist()[2] < 1 / 2, "rounding must not bring a change beyond its clip"
    assert counted([1.0, 3.0], np.empty(0), None).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("change", [1e30, -1e38, np.inf, np.nan])
def test_a_change_that_blew_up_is_refused_without_a_warning_of_numpys(change: float) -> None:
    with pytest.raises(UpdateRejected, match="not finite"):  # and no RuntimeWarning, which is an error here
        Learnt(np.full(3, change, np.float32), np.zeros(2), np.ones(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["delta", "losses", "norms"])
def test_what_is_not_finite_was_not_learnt(field: str, bad: float) -> None:
    found: dict[str, np.ndarray[Any, np.dtype[Any]]] = {"delta": np.zeros(3, np.float32), "losses": np.zeros(2), "norms": np.ones(2)}
    Learnt(**found)
    found[field] = np.array([0.0, bad], found[field].dtype)
    with pytest.raises(UpdateRejected, match="not finite"):
        Learnt(**found)
