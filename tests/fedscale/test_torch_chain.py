from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale.torch_learner.blocks import binary_cross_entropy, cross_entropy, loss_of, squared_error
from fedscale.torch_learner.chain import Dense, chain_of


class Free(nn.Module):
    """A forward pass made of whatever is given, on one or two layers."""

    def __init__(self, forward: Callable[[Free, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self._forward = nn.Linear(4, 6), nn.Linear(6, 3), forward

    def forward(self, features: Tensor) -> Tensor:
        return self._forward(self, features)


def dense(module: nn.Module) -> list[Dense]:
    stages, why = chain_of(module)
    assert why == ""
    return [stage for stage in stages if isinstance(stage, Dense)]


def computed(module: nn.Module, features: Tensor) -> Tensor:
    """The chain's own outputs."""
    stages, why = chain_of(module)
    assert why == ""
    state = dict(module.named_parameters())
    values = features.flatten(1)
    for stage in stages:
        if isinstance(stage, Dense):
            values = functional.linear(values, state[stage.weight], state[stage.bias] if stage.bias else None)
        else:
            values = stage(values)
    return values


def test_layers_are_found_by_name() -> None:
    assert dense(nn.Linear(4, 3)) == [Dense("weight", "bias", 4, 3)]
    assert dense(nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))) == [
        Dense("0.weight", "", 4, 5),
        Dense("2.weight", "2.bias", 5, 3),
    ]
    assert [layer.weight for layer in dense(Free(lambda m, x: m.b(functional.relu(m.a(x)))))] == ["a.weight", "b.weight"]


CHAINS: dict[str, nn.Module] = {
    "sequence": nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.LeakyReLU(0.3), nn.Sequential(nn.Linear(6, 5), nn.Softplus(2.0)), nn.Linear(5, 3)),
    "settings": nn.Sequential(nn.Linear(4, 6), nn.ELU(0.7), nn.Hardtanh(-0.2, 0.4), nn.GELU("tanh"), nn.Linear(6, 3)),
    "nothing": nn.Sequential(nn.Identity(), nn.Linear(4, 3), nn.Dropout(0.0)),
    "functions": Free(lambda m, x: m.b(functional.leaky_relu(m.a(torch.flatten(x, 1)), negative_slope=0.4))),
    "arguments in order": Free(lambda m, x: m.b(functional.leaky_relu(m.a(torch.flatten(x, 1)), 0.4))),
    "methods": Free(lambda m, x: m.b(m.a(x.flatten(1)).tanh().relu())),
    "in place": Free(lambda m, x: m.b(functional.relu(m.a(x), inplace=True))),
    "ends in a function": Free(lambda m, x: torch.sigmoid(m.b(torch.relu(m.a(x))))),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_computes_what_the_module_does(name: str) -> None:
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(computed(CHAINS[name], features.clone()), CHAINS[name](features))


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    module[0].weight.requires_grad_(False)
    return module


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda *_: None)
    return module


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.a(features)
        return outputs if features.sum() > 0 else -outputs


class Odd(nn.Linear):
    """A linear layer that is none."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + 1


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Branching(), "the model's forward pass depends on more than shapes: TraceError"),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), "'_1' is neither a linear layer nor elementwise"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "'_1' is neither a linear layer nor elementwise"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), "'_1' is neither a linear layer nor elementwise"),
        (nn.Sequential(nn.Linear(4, 3), nn.Flatten()), "'_1' flattens within the model"),
        (Free(lambda m, x: m.b(m.a(x)) + x.sum()), "'sum_1' takes more than the result before it"),
        (Free(lambda m, x: m.b(m.a(x) + 1)), "'add' is neither a linear layer nor elementwise"),
        (Free(lambda m, x: m.a(x)), "the model has state outside of linear layers that are used once"),
        (nn.ReLU(), "the model has state outside of linear layers that are used once"),
        (shared(), "the model has state outside of linear layers that are used once"),
        (frozen(), "a parameter is frozen or not float32"),
        (nn.Linear(4, 3).double(), "a parameter is frozen or not float32"),
        (hooked(), "'_0' is neither a linear layer nor elementwise"),
        (nn.Bilinear(2, 2, 2), "the model has several inputs"),
    ],
)
def test_what_is_no_chain_is_said_to_be_none(module: nn.Module, why: str) -> None:
    assert chain_of(module) == ([], why)


def test_a_layer_of_another_class_is_not_taken_for_linear() -> None:
    stages, why = chain_of(nn.Sequential(Odd(4, 3)))
    assert stages == []
    assert why


@pytest.mark.parametrize(
    ("loss", "outputs", "form"),
    [
        (functional.cross_entropy, 3, cross_entropy),
        (nn.CrossEntropyLoss(), 2, cross_entropy),
        (functional.cross_entropy, 1, None),
        (nn.CrossEntropyLoss(label_smoothing=0.1), 3, None),
        (nn.CrossEntropyLoss(torch.ones(3)), 3, None),
        (nn.CrossEntropyLoss(reduction="sum"), 3, None),
        (functional.binary_cross_entropy_with_logits, 1, binary_cross_entropy),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)), 1, None),
        (functional.binary_cross_entropy_with_logits, 3, None),
        (nn.MSELoss(), 1, squared_error),
        (functional.l1_loss, 1, None),
        (lambda outputs, targets: functional.cross_entropy(outputs, targets), 3, None),  # noqa: PLW0108 - another function
    ],
)
def test_losses_are_known_only_as_they_come(loss: object, outputs: int, form: object) -> None:
    assert loss_of(loss, outputs) is form


@pytest.mark.parametrize(
    ("form", "theirs", "classes"),
    [
        (cross_entropy, functional.cross_entropy, 4),
        (binary_cross_entropy, functional.binary_cross_entropy_with_logits, 1),
        (squared_error, functional.mse_loss, 1),
    ],
)
def test_losses_and_gradients_are_torchs(form: Callable[..., tuple[Tensor, Tensor]], theirs: Callable[..., Tensor], classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = (3 * torch.randn(2, 5, classes, generator=generator)).requires_grad_()
    targets = torch.randint(0, max(classes, 2), (2, 5), generator=generator)
    losses, gradient = form(outputs.detach(), targets)
    flat = outputs.reshape(10, classes)
    each = theirs(flat, targets.reshape(10), reduction="none") if classes > 1 else theirs(flat[:, 0], targets.reshape(10).float(), reduction="none")
    assert torch.allclose(losses.reshape(10), each, rtol=1e-6)
    assert torch.allclose(gradient, torch.autograd.grad(each.sum(), outputs)[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 10, 63])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_cross_entropy_is_torchs_for_logits_of_any_size(classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    outputs = (scale * torch.randn(3, 7, classes, generator=generator)).requires_grad_()
    targets = torch.randint(0, classes, (3, 7), generator=generator)
    before = outputs.detach().clone()
    losses, gradient = cross_entropy(before, targets)
    each = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    assert torch.allclose(losses.flatten(), each, rtol=1e-6, atol=1e-6)
    assert torch.allclose(gradient, torch.autograd.grad(each.sum(), outputs)[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(before, outputs)


def test_cross_entropy_takes_what_a_model_rules_out_and_shows_what_diverged() -> None:
    outputs = torch.tensor([[[0.0, -math.inf, 1.0], [0.0, math.inf, 1.0], [0.0, math.nan, 1.0]]])
    losses, gradient = cross_entropy(outputs, torch.tensor([[2, 0, 0]]))
    assert losses[0, 0] == pytest.approx(math.log1p(math.exp(-1)))
    assert gradient[0, 0].tolist() == pytest.approx([1 / (1 + math.e), 0.0, 1 / (1 + math.exp(-1)) - 1])
    assert not losses[0, 1:].isfinite().any()
