from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import fedscale.torch_learner.resident
from fedscale.data import from_arrays
from fedscale.learner import App
from fedscale.torch_learner import TorchLearner, one_thread, substitutes
from fedscale.torch_learner.resident import Resident
from tests.fedscale.torch_samples import first, same, train, training

CPU, LOWER, LAST = torch.device("cpu"), torch.bfloat16, torch.channels_last
attend: Callable[..., Tensor] = functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        torch.manual_seed(1)
        yield


def computed(work: Callable[[], Any]) -> Any:
    """What some work gives in mixed precision."""
    with torch.autocast("cpu", LOWER), substitutes.Substitutes(substitutes.MIXED):
        return work()


def off(found: Tensor, exact: Tensor) -> float:
    """How far something is from what it should be, of all of it."""
    found, exact = found.detach().float(), exact.detach().float()
    return float((found - exact).norm() / exact.norm())


def rows(*lengths: int, width: int = 16) -> list[Tensor]:
    """Queries, keys or values of two heads, of as many rows each."""
    return [torch.randn(2, 2, length, width, requires_grad=True) for length in lengths]


# ------------------------------------------------------------------------------------------------------------------ images

FLAT: list[Callable[[Tensor], Tensor]] = [
    lambda images: images.flatten(1),
    lambda images: torch.flatten(images, 1),
    lambda images: torch.flatten(input=images, start_dim=1),
    lambda images: images.reshape(len(images), -1),
    lambda images: torch.reshape(images, (len(images), -1)),
    nn.Flatten(),
]


def pictured(*shape: int) -> Tensor:
    """Images, channels last."""
    return torch.randn(shape).contiguous(memory_format=LAST)


@pytest.mark.parametrize("flat", FLAT)
def test_gradients_of_rows_of_images_come_back_channels_last(flat: Callable[[Tensor], Tensor]) -> None:
    pooled, seen = functional.max_pool2d(pictured(2, 8, 6, 6).requires_grad_(), 2), list[bool]()
    with substitutes.Substitutes(substitutes.FULL):
        outputs = flat(pooled)
    assert torch.equal(outputs, pooled.flatten(1))
    pooled.register_hook(lambda gradient: seen.append(gradient.is_contiguous(memory_format=LAST)))
    torch.autograd.backward(outputs.square().sum())
    assert seen == [True]


LAYERS: list[Callable[[], list[nn.Module]]] = [
    lambda: [nn.ReLU(), nn.MaxPool2d(2)],
    lambda: [nn.MaxPool2d(2), nn.ReLU()],
    lambda: [nn.ReLU(), nn.AvgPool2d(2)],
    lambda: [nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(3)],
    lambda: [nn.BatchNorm2d(8), nn.GELU()],
    list,
]


@pytest.mark.parametrize("layers", LAYERS)
def test_full_precision_gives_the_same_as_without(layers: Callable[[], list[nn.Module]]) -> None:
    module, images = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers(), nn.Flatten(), nn.LazyLinear(4)), pictured(4, 3, 12, 12)
    module(images)  # the last layer learns its size
    resident = Resident(module, CPU)
    found = []
    for entered in (resident.computing(mixed=False), nullcontext()):
        with entered:
            outputs = resident.module(images)
        gradients = torch.autograd.grad(outputs.square().sum(), list(resident.module.parameters()))
        found.append((outputs, torch.cat([gradient.flatten() for gradient in gradients])))
    (outputs, moved), (same_outputs, same_moved) = found
    assert torch.equal(outputs, same_outputs)
    assert off(moved, same_moved) < 1e-6


def test_what_is_no_image_or_no_result_is_left_alone() -> None:
    kernel = nn.Parameter(pictured(4, 3, 3, 3))
    upright, tokens = torch.randn(2, 3, 4, 4, requires_grad=True) * 2, torch.randn(2, 3, 4, requires_grad=True) * 2
    with substitutes.Substitutes(substitutes.FULL):
        for tensor in (kernel, upright, tokens, pictured(2, 3, 4, 4)):
            tensor.flatten(1)
    assert all(not tensor._backward_hooks for tensor in (kernel, upright, tokens))


def test_models_without_images_compute_in_full_precision_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(forms: object) -> None:
        raise AssertionError(forms)

    monkeypatch.setattr(fedscale.torch_learner.resident, "Substitutes", refuse)
    with Resident(nn.Linear(4, 3), CPU).computing(mixed=False):
        assert torch.ones(2, 2).flatten().shape == (4,)
    with pytest.raises(AssertionError), Resident(nn.Conv2d(3, 4, 3), CPU).computing(mixed=False):
        pass


# ----------------------------------------------------------------------------------------------------------- linear layers


def test_small_linear_layers_stay_in_full_precision_and_large_ones_do_not() -> None:
    small, large = nn.Linear(64, 10), nn.Linear(1000, 512)
    few, many = torch.randn(8, 64), torch.randn(8, 1000)
    assert torch.equal(computed(lambda: small(few)), small(few))
    outputs = computed(lambda: large(many))
    assert outputs.dtype is LOWER
    assert off(outputs, large(many)) < 0.01


def test_rows_decide_as_much_as_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(substitutes, "LEAST_PRODUCTS", 5 * 4 * 3)
    layer = nn.Linear(4, 3)
    assert computed(lambda: layer(torch.ones(4, 4))).dtype is torch.float32
    assert computed(lambda: layer(torch.ones(5, 4))).dtype is LOWER
    assert computed(lambda: layer(torch.ones(1, 5, 4))).dtype is LOWER


@pytest.mark.parametrize("bias", [True, False])
def test_a_small_layer_behind_a_large_one_takes_its_rounded_outputs(*, bias: bool) -> None:
    large, small = nn.Linear(1000, 512), nn.Linear(512, 3, bias=bias)
    features, wanted = torch.randn(8, 1000), [*large.parameters(), *small.parameters()]
    outputs = computed(lambda: small(large(features)))
    assert outputs.dtype is torch.float32
    exact = torch.autograd.grad(small(large(features)).square().sum(), wanted)
    for found, true in zip(torch.autograd.grad(outputs.square().sum(), wanted), exact, strict=True):
        assert found.dtype is torch.float32
        assert off(found, true) < 0.02


def test_a_small_layer_of_half_floats_stays_one() -> None:
    assert computed(lambda: nn.Linear(4, 3, dtype=LOWER)(torch.ones(2, 4))).dtype is LOWER


# --------------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(48, 48, 48), (40, 64, 64), (64, 40, 40)])
def test_attention_through_scores_is_attention(lengths: tuple[int, int, int], *, causal: bool) -> None:
    inputs = rows(*lengths)
    exact = attend(*inputs, is_causal=causal)
    found = computed(lambda: attend(*inputs, is_causal=causal))
    assert found.dtype is LOWER
    assert off(found, exact) < 0.02
    weights = torch.randn_like(exact)
    gradients = zip(torch.autograd.grad(found, inputs, weights.to(LOWER)), torch.autograd.grad(exact, inputs, weights), strict=True)
    assert all(off(mine, theirs) < 0.03 for mine, theirs in gradients)


def test_nothing_that_comes_later_has_a_say_in_causal_attention() -> None:
    query, key, value = (tensor.detach() for tensor in rows(64, 64, 64))
    before = computed(lambda: attend(query, key, value, is_causal=True))
    key[:, :, 40:], value[:, :, 40:] = 50.0, 50.0
    after = computed(lambda: attend(query, key, value, is_causal=True))
    assert torch.equal(before[:, :, :40], after[:, :, :40])
    assert not torch.equal(before[:, :, 40:], after[:, :, 40:])


MASK = torch.ones(64, 64).tril().bool()


@pytest.mark.parametrize(
    ("length", "positional", "settings"),
    [
        (16, (), {}),
        (16, (), {"is_causal": True}),
        (64, (MASK,), {}),
        (64, (), {"attn_mask": torch.zeros(64, 64).masked_fill(~MASK, -1e4).to(LOWER)}),
        (64, (None, 0.0, True), {"scale": 0.5}),
        (64, (), {"enable_gqa": True}),
    ],
)
def test_other_attention_is_torchs_own_in_full_precision(length: int, positional: tuple[Any, ...], settings: dict[str, Any]) -> None:
    query, key, value = (tensor.detach().to(LOWER) for tensor in rows(length, length, length))
    found = computed(lambda: attend(query, key, value, *positional, **settings))
    whole = {name: setting.float() if isinstance(setting, Tensor) else setting for name, setting in settings.items()}
    assert found.dtype is torch.float32
    assert torch.equal(found, attend(query.float(), key.float(), value.float(), *positional, **whole))


def test_what_says_nothing_new_is_plain_attention() -> None:
    query, key, value = rows(64, 64, 64)
    plain = computed(lambda: attend(query, key, value, is_causal=True))
    assert torch.equal(computed(lambda: attend(query, key, value, None, 0.0, True)), plain)
    assert torch.equal(computed(lambda: attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=True, scale=None)), plain)


def test_attention_with_dropout_drops() -> None:
    query, key, value = rows(64, 64, 64)
    once, again = (computed(lambda: attend(query, key, value, dropout_p=0.5)) for _ in range(2))
    assert once.dtype is torch.float32
    assert not torch.equal(once, again)


def test_scores_too_many_to_keep_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = rows(64, 64, 64)
    monkeypatch.setattr(substitutes, "MOST_SCORES", 2 * 2 * 64 * 64)
    assert computed(lambda: attend(query, key, value)).dtype is LOWER
    monkeypatch.setattr(substitutes, "MOST_SCORES", 2 * 2 * 64 * 64 - 1)
    assert torch.equal(computed(lambda: attend(query, key, value)), attend(query, key, value))


# ------------------------------------------------------------------------------------------------------ torch's own layers


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(3, 20, 32), (20, 32)])
def test_torchs_layer_of_many_heads_gives_what_it_gave(shape: tuple[int, ...], *, causal: bool) -> None:
    layer, tokens = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(shape)
    mask = nn.Transformer.generate_square_subsequent_mask(20) if causal else None
    settings = {"need_weights": False, "attn_mask": mask, "is_causal": causal}
    exact, nothing = layer(tokens, tokens, tokens, **settings)
    found, weights = computed(lambda: layer(tokens, tokens, tokens, **settings))
    assert (weights, nothing) == (None, None)
    assert off(found, exact) < 0.02


def test_weights_of_attention_that_are_asked_for_are_given() -> None:
    layer, tokens = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(3, 20, 32)
    exact = layer(tokens, tokens, tokens)[1]
    weights = computed(lambda: layer(tokens, tokens, tokens)[1])
    assert weights.shape == (3, 20, 20)
    assert off(weights, exact) < 0.02
    assert computed(lambda: layer(tokens, tokens, tokens, average_attn_weights=False)[1]).shape == (3, 4, 20, 20)


@pytest.mark.parametrize(
    "hidden",
    [
        {"key_padding_mask": torch.arange(20).expand(3, 20) < 4, "attn_mask": torch.ones(20, 20).triu(1).bool(), "is_causal": True},
        {"attn_mask": torch.ones(20, 20).triu().bool()},
    ],
)
def test_tokens_to_which_everything_is_hidden_have_torchs_own_answer(hidden: dict[str, Any]) -> None:
    layer, tokens = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(3, 20, 32)
    found = computed(lambda: layer(tokens, tokens, tokens, need_weights=False, **hidden)[0])
    with torch.autocast("cpu", LOWER):
        assert torch.equal(found, layer(tokens, tokens, tokens, need_weights=False, **hidden)[0])
    assert bool(found.isfinite().all())


def test_heads_are_asked_for_weights_only_where_these_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tokens = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(3, 20, 32)
    monkeypatch.setattr(substitutes, "MOST_SCORES", 3 * 4 * 20 * 20)
    through_scores = computed(lambda: layer(tokens, tokens, tokens, need_weights=False)[0])
    monkeypatch.setattr(substitutes, "MOST_SCORES", 3 * 4 * 20 * 20 - 1)
    fused = computed(lambda: layer(tokens, tokens, tokens, need_weights=False)[0])
    with torch.autocast("cpu", LOWER):
        assert torch.equal(fused, layer(tokens, tokens, tokens, need_weights=False)[0])
        assert torch.equal(through_scores, layer(tokens, tokens, tokens)[0])
    assert not torch.equal(fused, through_scores)


@pytest.mark.parametrize("layer", [nn.GRU(16, 8, batch_first=True), nn.RNN(16, 8), nn.RNN(16, 8, nonlinearity="relu"), nn.GroupNorm(4, 16)])
def test_layers_that_bfloat16_slows_down_compute_in_full_precision(layer: nn.Module) -> None:
    values = torch.randn(5, 16, 16).to(LOWER)
    found, exact = (outputs[0] if isinstance(outputs, tuple) else outputs for outputs in (computed(lambda: layer(values)), layer(values.float())))
    assert found.dtype is torch.float32
    assert torch.equal(found, exact)


def test_sequences_of_different_lengths_are_read_in_full_precision() -> None:
    layer, values = nn.GRU(16, 8, batch_first=True), torch.randn(3, 7, 16)
    packed = nn.utils.rnn.pack_padded_sequence(values, torch.tensor([7, 4, 2]), batch_first=True)
    assert torch.equal(computed(lambda: layer(packed)[1]), layer(packed)[1])


# ----------------------------------------------------------------------------------------------------------------- models


class Reader(nn.Module):
    """A layer of torch's transformer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(50, 64), nn.Linear(64, 50)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        outputs: Tensor = self.head(self.layer(self.tokens(tokens), src_mask=mask, is_causal=True))
        return outputs


class Looker(nn.Module):
    """Convolutions, pools and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.parts(images)
        return outputs


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def sentences() -> Any:
    begun = np.arange(16)[:, None] + np.arange(33)
    return TensorDataset(*(torch.from_numpy(part.copy()) for part in ((begun * 7 % 50)[:, :-1], (begun * 7 % 50)[:, 1:])))


def pictures() -> Any:
    rng, labels = np.random.default_rng(2), np.arange(24) % 4
    return from_arrays(rng.normal(size=(24, 3, 16, 16)).astype(np.float32) + labels[:, None, None, None], labels)


@pytest.mark.parametrize(("model", "data"), [(Reader, sentences), (Looker, pictures)])
def test_mixed_precision_learns_what_full_precision_learns(model: Callable[[], nn.Module], data: Callable[[], Any]) -> None:
    learner, rows = TorchLearner(App(model=model, loss=loss)), data()
    begin = first(learner)
    whole, whole_loss = train(learner, rows, begin, training=training(epochs=6))
    found, found_loss = train(learner, rows, begin, training=training(epochs=6, amp=True))
    again, _ = train(TorchLearner(App(model=model, loss=loss)), rows, begin, training=training(epochs=6, amp=True))
    assert same(found, again)
    assert not same(found, whole)
    assert found_loss == pytest.approx(whole_loss, rel=0.02)
    exact, rounded = (np.concatenate([(model[name] - begin[name]).ravel() for name in begin]) for model in (whole, found))
    assert np.linalg.norm(rounded - exact) < 0.2 * np.linalg.norm(exact)


def test_a_resident_computes_in_mixed_precision_only_while_it_is_asked_to() -> None:
    resident, values = Resident(nn.Linear(1000, 512), CPU), torch.randn(8, 1000)
    with resident.computing(mixed=True):
        inner = resident.module(values)
        assert inner.dtype is LOWER
        assert attend(*[inner[None, None]] * 3).dtype is torch.float32
    assert resident.module(values).dtype is torch.float32
