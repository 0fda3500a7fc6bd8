from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedscale.learner import App, LocalOptimizer, Training
from fedscale.torch_learner import TorchLearner, kernels, one_thread
from fedscale.torch_learner.blocks import Blocks
from fedscale.torch_learner.chain import Dense
from fedscale.torch_learner.factored import Pace, factors
from fedscale.torch_learner.resident import Resident
from fedscale.torch_learner.stacked import Stacked
from fedscale.vector import Schema
from tests.fedscale.torch_samples import app, classes, first, train, training

CPU = torch.device("cpu")
one_dnn = pytest.mark.skipif(not kernels.available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


# ---------------------------------------------------------------------------------------------------------------- kernels


@one_dnn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12)])
def test_one_dnns_product_is_torchs(shape: tuple[int, ...], *, bias: bool) -> None:
    torch.manual_seed(1)
    layer, features = nn.Linear(12, 9, bias=bias), torch.randn(shape, requires_grad=True)
    wanted = [features, *layer.parameters()]
    theirs = torch.autograd.grad(layer(features).square().sum(), wanted)
    ours = torch.autograd.grad(kernels.OneDnnLinear.apply(features, layer.weight, layer.bias).square().sum(), wanted)
    assert all(torch.allclose(mine, other, rtol=1e-5, atol=1e-5) for mine, other in zip(ours, theirs, strict=True))


@one_dnn
def test_large_layers_get_the_faster_kernel_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "full_width", lambda: True)
    monkeypatch.setattr(kernels, "LEAST_PRODUCTS", 20_000)
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    features = torch.randn(8, 64)
    expected = module(features)
    kernels.install(module, CPU)
    outputs = module(features)
    assert torch.allclose(outputs, expected, atol=1e-6)
    assert "OneDnn" in type(module[0](features).grad_fn).__name__
    assert "OneDnn" not in type(module[0](features[:1]).grad_fn).__name__
    assert "OneDnn" not in type(module[2](outputs.new_ones(8, 64)).grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert module[0](features).dtype is torch.bfloat16


def test_nothing_changes_where_the_kernel_is_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "full_width", lambda: False)
    module = nn.Linear(3000, 1000)
    kernels.install(module, CPU)
    assert "forward" not in vars(module)


def test_a_build_without_one_dnn_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert kernels.gains.__wrapped__() is False


@pytest.mark.parametrize(
    ("capability", "text", "expected"),
    [
        ("AVX512", "processor\t: 0\nvendor_id\t: AuthenticAMD\n", kernels.available()),
        ("AVX512", "vendor_id\t: GenuineIntel\n", False),
        ("AVX2", "vendor_id\t: AuthenticAMD\n", False),
        ("AVX512", "Hardware : another\n", False),
    ],
)
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: str, text: str, *, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    made = kernels.processor("vendor_id", tmp_path / "cpuinfo")
    monkeypatch.setattr(kernels, "processor", lambda _: made)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert kernels.gains.__wrapped__() is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor_id : GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", False),
        ("vendor_id : GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("vendor_id : AuthenticAMD\nflags\t\t: fpu avx2\n", True),
        ("Features : asimd bf16\n", False),
        ("", False),
    ],
)
def test_what_the_processor_can_do_decides_on_short_floats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, *, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    facts = {fact: kernels.processor(fact, tmp_path / "cpuinfo") for fact in ("flags", "vendor_id")}
    monkeypatch.setattr(kernels, "processor", facts.get)
    assert kernels.slow_halves.__wrapped__() is expected


def test_a_processor_that_cannot_be_read_keeps_torchs_kernel(tmp_path: Path) -> None:
    assert kernels.processor("vendor_id", tmp_path / "absent") == ""


@pytest.mark.parametrize(
    ("gains", "family", "expected"),
    [(True, "26", True), (True, "25", False), (True, "", False), (True, "unknown", False), (False, "26", False)],
)
def test_the_generation_decides_on_the_layers_of_training(monkeypatch: pytest.MonkeyPatch, family: str, *, gains: bool, expected: bool) -> None:
    monkeypatch.setattr(kernels, "gains", lambda: gains)
    monkeypatch.setattr(kernels, "processor", {"cpu family": family}.get)
    assert kernels.full_width.__wrapped__() is expected


# --------------------------------------------------------------------------------------------------------------- resident


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("make", [images, lambda: nn.LSTM(3, 4), lambda: nn.Linear(3, 2)])
def test_a_model_goes_in_and_out_in_one_copy(make: type[nn.Module]) -> None:
    torch.manual_seed(1)
    resident = Resident(make(), CPU)
    arrays = resident.arrays()
    schema = Schema.of(arrays)
    vector = np.random.default_rng(1).random(schema.size, np.float32)
    resident.load(schema.unpack(vector))
    assert (schema.flat(resident.arrays()) == vector).all()
    assert all((tensor.numpy() == schema.unpack(vector)[name]).all() for name, tensor in resident.shared.items())
    resident.load(dict(schema.unpack(vector * 2)))
    assert (schema.flat(resident.arrays()) == vector * 2).all()
    assert not np.shares_memory(schema.flat(resident.arrays()), schema.flat(resident.arrays()))


def test_tied_weights_stay_tied() -> None:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        module[1].weight = module[0].weight
        return module

    learner = TorchLearner(app(tied))
    arrays, _ = train(learner, classes(), first(learner))
    assert (arrays["0.weight"] == arrays["1.weight"]).all()
    assert (arrays["0.weight"] != first(learner)["0.weight"]).any()


def test_gradients_that_autograd_shares_are_not_spoilt() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features[:, :3] + (self.left + self.right)

    learner = TorchLearner(app(Twins))
    arrays, _ = train(learner, classes(), training=training(weight_decay=0.5, epochs=2))
    assert (arrays["left"] == arrays["right"]).all()
    wanted = training(epochs=2, weight_decay=0.5)
    double = TorchLearner(App(model=Twins, loss=nn.functional.cross_entropy))
    assert (train(double, classes(), training=wanted)[0]["left"] == arrays["left"]).all()


# --------------------------------------------------------------------------------------------------------------- factored


@given(st.integers(1, 6), st.floats(0.01, 0.5), st.floats(0, 0.9), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 99))
def test_the_course_of_the_weights_is_that_of_the_steps(steps: int, lr: float, momentum: float, decay: float, mu: float, seed: int) -> None:
    pace = Pace(steps, 1, LocalOptimizer(lr=lr, momentum=momentum, weight_decay=decay), mu)
    gradients, start = np.random.default_rng(seed).normal(size=steps), 1.7
    weight, speed = start, 0.0
    a, c = pace.course()
    for step in range(steps):
        assert weight == pytest.approx(a[step] * start + float(np.dot(c[step], gradients)), abs=1e-9)
        speed = momentum * speed + gradients[step] + decay * weight + mu * (weight - start)
        weight -= lr * speed
    assert weight == pytest.approx(a[steps] * start + float(np.dot(c[steps], gradients)), abs=1e-9)


def test_wide_layers_and_few_rows_are_shared() -> None:
    pace = Pace(2, 10, LocalOptimizer(), 0.0)
    assert factors(Dense("w", "b", 784, 64), pace, first=True)
    assert not factors(Dense("w", "b", 784, 64), replace(pace, steps=100), first=True)
    assert not factors(Dense("w", "b", 16, 4), replace(pace, steps=10), first=False)


def test_what_sgd_alone_can_do_others_do_stacked() -> None:
    learner = TorchLearner(app())
    assert isinstance(learner.blocks(Training(device="cpu"), 0.0, classes)[0], Blocks)
    assert isinstance(learner.blocks(training(name="adam"), 0.0, classes)[0], Stacked)
    assert not learner.on_cuda("cpu")
