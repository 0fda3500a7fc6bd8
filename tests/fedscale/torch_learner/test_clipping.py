from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale.errors import AppError
from fedscale.torch_learner import one_thread
from fedscale.torch_learner.clipping import Apart, Objective, OneByOne, Vectorized, Way, way_for
from fedscale.torch_learner.examples import aligned
from fedscale.torch_learner.ghost import Ghost
from fedscale.torch_learner.rows import Rows

KINDS, COUNT = 3, 10
MEMBER = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        torch.manual_seed(3)
        yield


class Words(nn.Module):
    """The mean of a few embedded words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(11, 5, padding_idx=0), nn.Linear(5, KINDS)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.words(features).mean(1))
        return outputs


class Tied(Words):
    """The embedding's table is used a second time, and not as a layer."""

    def forward(self, features: Tensor) -> Tensor:
        return functional.linear(self.words(features).mean(1), self.words.weight[:KINDS])


class Sequence(nn.Module):
    """An LSTM, or a transformer's layer, and a linear one."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.last = body, nn.Linear(width, KINDS)

    def forward(self, features: Tensor) -> Tensor:
        found = self.body(features)
        outputs: Tensor = self.last((found[0] if isinstance(found, tuple) else found)[:, -1])
        return outputs


class Residual(nn.Module):
    """Linear layers over several positions, added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, KINDS)

    def forward(self, features: Tensor) -> Tensor:
        inner = torch.tanh(self.first(features))
        inner = inner + self.second(inner)
        outputs: Tensor = self.last(inner.mean(1))
        return outputs


class Gossip(nn.Module):
    """Each row is told the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, KINDS)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.last(features + 3 * features.mean(0, keepdim=True))
        return outputs


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.last = nn.Linear(4, 4), nn.Linear(4, KINDS)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.last(torch.relu(self.same(torch.relu(self.same(features)))))
        return outputs


def pictures() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(inplace=True), nn.Conv2d(8, 4, (1, 3), dilation=(1, 2)), nn.GroupNorm(2, 4)),
        *(nn.ReLU(inplace=True), nn.Conv2d(4, 4, (3, 1), groups=2, bias=False), nn.Flatten(), nn.Linear(4 * 4 * 2, KINDS)),
    )


@dataclass(frozen=True)
class Model:
    make: Callable[[], nn.Module]
    features: Callable[[], Tensor]
    way: str


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(COUNT, *shape)


MODELS = {
    "linear": Model(lambda: nn.Linear(4, KINDS), numbers(4), "ghost"),
    "without bias": Model(lambda: nn.Linear(4, KINDS, bias=False), numbers(4), "ghost"),
    "norm of layers": Model(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Dropout(0.5), nn.Linear(6, KINDS)), numbers(4), "ghost"),
    "convolutions": Model(pictures, numbers(3, 12, 12), "ghost"),
    "embedding": Model(Words, lambda: torch.randint(0, 11, (COUNT, 6)), "ghost"),
    "positions": Model(Residual, numbers(5, 4), "ghost"),
    "tied": Model(Tied, lambda: torch.randint(0, 11, (COUNT, 6)), "per row"),
    "twice": Model(Twice, numbers(4), "per row"),
    "lstm": Model(lambda: Sequence(nn.LSTM(3, 4, batch_first=True), 4), numbers(5, 3), "per row"),
    "attention": Model(lambda: Sequence(nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True), 4), numbers(5, 4), "per row"),
    "gossip": Model(Gossip, numbers(4), "per row"),
}


def objective(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy) -> Objective:
    return Objective(module, lambda outputs, targets: aligned(outputs, targets, KINDS), loss)


def labels() -> Tensor:
    return torch.arange(COUNT) % KINDS


def by_loop(module: nn.Module, features: Tensor, targets: Tensor, member: Tensor, clip: float) -> list[Tensor]:
    """The definition, written down: each unit's mean gradient, scaled down to the clip, and all of them added."""
    total = [torch.zeros_like(own) for own in module.parameters()]
    for unit in member.unique():
        gradients = [torch.zeros_like(own) for own in module.parameters()]
        rows = torch.nonzero(member == unit).flatten()
        for row in rows.tolist():
            module.zero_grad()
            functional.cross_entropy(module(features[row : row + 1]), targets[row : row + 1]).backward()
            for into, own in zip(gradients, module.parameters(), strict=True):
                into.add_(torch.zeros_like(own) if own.grad is None else own.grad / len(rows))
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        for into, each in zip(total, gradients, strict=True):
            into.add_(each * min(1.0, clip / float(norm)))
    return total


def apart(ones: list[Tensor], others: list[Tensor]) -> float:
    one, other = (torch.cat([each.flatten() for each in sums]) for sums in (ones, others))
    return float((one - other).abs().max())


@pytest.mark.parametrize("units", ["rows", "patients"])
@pytest.mark.parametrize("name", MODELS)
def test_clipped_gradients_are_those_of_the_loop(name: str, units: str) -> None:
    model = MODELS[name]
    module, features, targets = model.make(), model.features(), labels()
    way = way_for(objective(module), features[:4], targets[:4])
    assert way.name == model.way
    module.eval()
    member = torch.arange(COUNT) if units == "rows" else MEMBER
    rows = Rows.of(member, int(member.max()) + 1)
    for clip in (0.3, 100.0):
        expected = by_loop(copy.deepcopy(module), features, targets, member, clip)
        for each in (way, OneByOne(objective(module))):
            assert apart(each.clipped(features.clone(), targets, rows, clip), expected) < 1e-5


@pytest.mark.parametrize("make", [Apart, Vectorized, OneByOne])
def test_every_way_gives_the_same_and_leaves_nothing_behind(make: Callable[[Objective], Way]) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, KINDS))
    features, targets, names = torch.randn(COUNT, 4), labels(), list(module.state_dict())
    rows = Rows.of(torch.arange(COUNT), COUNT)
    expected = by_loop(copy.deepcopy(module), features, targets, torch.arange(COUNT), 0.5)
    way = make(objective(module))
    for _ in range(3):
        assert apart(way.clipped(features.clone(), targets, rows, 0.5), expected) < 1e-5
    assert list(module.state_dict()) == names
    assert all(own.requires_grad and own.grad is None for own in module.parameters())
    assert not any(part._forward_hooks or part._backward_hooks or hasattr(part, "activations") for part in module.modules())


def test_hooks_are_taken_away_from_a_model_that_fails() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(5, KINDS))
    with pytest.raises(RuntimeError, match="shapes"):
        Ghost(module).clipped(lambda outputs: outputs.sum(1), torch.randn(2, 4), Rows.of(torch.arange(2), 2), 1.0)
    assert not any(part._forward_hooks for part in module.modules())
    assert all(own.requires_grad for own in module.parameters())


def test_a_sum_is_never_longer_than_its_units_times_the_clip() -> None:
    module = nn.Linear(4, KINDS)
    same, wrong = torch.full((COUNT, 4), 100.0), torch.zeros(COUNT, dtype=torch.long)
    found = Apart(objective(module)).clipped(same, wrong, Rows.of(torch.arange(COUNT), COUNT), 0.7)
    length = float(torch.cat([each.double().flatten() for each in found]).norm())
    assert 0.999 * COUNT * 0.7 < length <= COUNT * 0.7


@pytest.mark.parametrize("weighted", [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 25.0])), nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_a_loss_that_weighs_rows_against_each_other_is_taken_row_by_row(weighted: nn.Module) -> None:
    module, features, targets = nn.Linear(4, KINDS), torch.randn(COUNT, 4), labels()
    way = way_for(objective(module, weighted), features[:4], targets[:4])
    assert way.name == "ghost"
    one, two = (way.clipped(features[:end].clone(), targets[:end], Rows.of(torch.arange(end), end), 1e6) for end in (1, 2))
    other = way.clipped(features[1:2].clone(), targets[1:2], Rows.of(torch.arange(1), 1), 1e6)
    assert apart(two, [here + there for here, there in zip(one, other, strict=True)]) < 1e-5


def test_a_frozen_layer_takes_no_part() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, KINDS))
    module[0].requires_grad_(False)
    found = way_for(objective(module), torch.randn(4, 4), labels()[:4])
    sums = found.clipped(torch.randn(COUNT, 4), labels(), Rows.of(torch.arange(COUNT), COUNT), 1.0)
    assert found.name == "ghost"
    assert [each.shape for each in sums] == [own.shape for own in module[2].parameters()]


def test_models_that_cannot_be_taken_apart_say_why() -> None:
    half = nn.Linear(4, 3)
    half.bias.requires_grad_(False)
    shared = nn.Linear(4, 4)
    lookup = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten(), nn.Linear(3, KINDS))
    with pytest.raises(AppError, match="frozen in part"):
        Ghost(half)
    with pytest.raises(AppError, match="no rule for LSTM"):
        Ghost(nn.LSTM(3, 4))
    twin = nn.Linear(4, 4)
    twin.weight = shared.weight
    with pytest.raises(AppError, match="share a parameter"):
        Ghost(nn.Sequential(shared, twin))
    with pytest.raises(AppError, match="rescales itself"):
        Ghost(lookup).clipped(lambda outputs: outputs.sum(1), torch.ones(2, 1, dtype=torch.long), Rows.of(torch.arange(2), 2), 1.0)
