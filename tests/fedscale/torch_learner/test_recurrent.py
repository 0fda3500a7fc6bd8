from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from fedscale.learner import Training
from fedscale.torch_learner import one_thread, recurrent
from fedscale.torch_learner.examples import Examples
from fedscale.torch_learner.stacked import MOST_WORK, stacked_for

CLIENTS, TIME, BATCH, IN, SIZE = 3, 5, 4, 2, 6
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows first": {"batch_first": True},
    "without bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "two layers, rows first": {"num_layers": 2, "batch_first": True, "bias": False},
}
LAYERS: tuple[type[nn.RNNBase], ...] = (nn.LSTM, nn.GRU)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


class Last(nn.Module):
    """Classifies by every state, the last ones of all layers and their cells, so that each has a gradient."""

    def __init__(self, kind: str, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = layer(IN, SIZE, **KINDS[kind]), nn.Linear(3 * SIZE, 3)  # type: ignore[arg-type]  # of every kind of layer

    def forward(self, rows: Tensor) -> Tensor:
        states, ended = self.cell(rows)
        last, cells = ended if isinstance(ended, tuple) else (ended, ended.square())
        outputs: Tensor = self.head(torch.cat([states.mean(1 if self.cell.batch_first else 0), last.sum(0), cells.sum(0)], 1))
        return outputs


def pair(kind: str, layer: type[nn.RNNBase] = nn.LSTM) -> tuple[nn.Module, nn.Module]:
    """The same model with torch's layer and with ours."""
    torch.manual_seed(3)
    theirs, ours = Last(kind, layer), Last(kind, layer)
    ours.load_state_dict(theirs.state_dict())
    recurrent.install(ours)
    return theirs, ours


def drawn(kind: str, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Rows and labels of each client."""
    chance = torch.Generator().manual_seed(seed)
    shape = (CLIENTS, BATCH, TIME, IN) if KINDS[kind].get("batch_first") else (CLIENTS, TIME, BATCH, IN)
    return torch.randn(shape, generator=chance), torch.randint(0, 3, (CLIENTS, BATCH), generator=chance)


def gradients(module: nn.Module, rows: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of weights and rows by torch's own way back."""
    rows = rows.clone().requires_grad_()
    named = dict(module.named_parameters())
    *found, at_rows = torch.autograd.grad(functional.cross_entropy(module(rows), labels), [*named.values(), rows])
    return dict(zip(named, found, strict=True)), at_rows


def close(ours: Tensor, theirs: Tensor) -> bool:
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max()) <= 1e-6 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_client_has_the_values_and_gradients_of_torchs_layer(kind: str, layer: type[nn.RNNBase]) -> None:
    theirs, ours = pair(kind, layer)
    rows, labels = (values[0] for values in drawn(kind))
    assert close(ours(rows), theirs(rows))
    (wanted, at_rows), (found, also_at_rows) = gradients(theirs, rows, labels), gradients(ours, rows, labels)
    assert close(also_at_rows, at_rows)
    assert {name: close(found[name], wanted[name]) for name in wanted} == dict.fromkeys(wanted, True)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_clients_at_once_have_the_gradients_of_each(kind: str, layer: type[nn.RNNBase]) -> None:
    theirs, ours = pair(kind, layer)
    rows, labels = drawn(kind)
    own = {name: torch.stack([entry.detach() * (1 + 0.1 * at) for at in range(CLIENTS)]) for name, entry in theirs.named_parameters()}
    descent = vmap(grad_and_value(lambda weights, some, wanted: functional.cross_entropy(functional_call(ours, weights, (some,)), wanted)))
    found, losses = descent(own, rows, labels)
    for at in range(CLIENTS):
        theirs.load_state_dict({name: entry[at] for name, entry in own.items()})
        wanted, _ = gradients(theirs, rows[at], labels[at])
        assert all(close(found[name][at], wanted[name]) for name in wanted)
        assert close(losses[at], functional.cross_entropy(theirs(rows[at]), labels[at]))


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_that_all_share_and_rows_that_differ_go_together(layer: type[nn.RNNBase]) -> None:
    theirs, ours = pair("plain", layer)
    rows, _ = drawn("plain")
    together = vmap(lambda some: functional_call(ours, dict(ours.named_parameters()), (some,)))(rows)
    assert all(close(together[at], theirs(rows[at])) for at in range(CLIENTS))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_sequence_of_one_step_has_no_gradient_of_its_inner_weights(layer: type[nn.RNNBase]) -> None:
    theirs, ours = pair("plain", layer)
    rows, labels = (values[0] for values in drawn("plain"))
    wanted, found = gradients(theirs, rows[:1], labels)[0], gradients(ours, rows[:1], labels)[0]
    assert not found["cell.weight_hh_l0"].any()
    assert all(close(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("layer", "handled"),
    [
        (nn.LSTM(3, 4, num_layers=3, batch_first=True), True),
        (nn.LSTM(3, 4, dropout=0.0, num_layers=2), True),
        (nn.LSTM(3, 4, dropout=0.5, num_layers=2), False),
        (nn.LSTM(3, 4, bidirectional=True), False),
        (nn.LSTM(3, 4, proj_size=2), False),
        (nn.GRU(3, 4), True),
        (nn.GRU(3, 4, bidirectional=True), False),
        (nn.GRU(3, 4, dropout=0.5, num_layers=2), False),
        (nn.RNN(3, 4), False),
    ],
)
def test_only_layers_with_a_kernel_are_handled(layer: nn.RNNBase, *, handled: bool) -> None:
    assert recurrent.handles(layer) is handled


def test_a_layer_whose_forward_pass_somebody_has_changed_is_not_handled() -> None:
    layer = nn.LSTM(3, 4)
    layer.forward = lambda rows, state=None: (rows, state)  # type: ignore[method-assign]
    assert not recurrent.handles(layer)


def test_what_does_not_begin_with_zeros_or_is_no_batch_is_refused() -> None:
    rows = torch.ones(TIME, BATCH, IN)
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, IN), torch.ones(2, IN)])
    one = torch.ones(1, BATCH, SIZE)
    for layer, state in ((nn.LSTM(IN, SIZE), (one, one)), (nn.GRU(IN, SIZE), one)):
        recurrent.install(layer)
        for wrong in ((rows, state), (rows[0],), (packed,)):
            with pytest.raises(TypeError, match="begin with zeros"):
                layer(*wrong)


class Sentences(nn.Module):
    """An LSTM or a GRU over rows of numbers, as wide as asked for."""

    def __init__(self, size: int, layer: type[nn.RNNBase] = nn.LSTM, *, begin: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.begin = layer(IN, size, batch_first=True), nn.Linear(size, 3), begin  # type: ignore[arg-type, call-arg]

    def forward(self, rows: Tensor) -> Tensor:
        zeros = rows.new_zeros(1, len(rows), self.cell.hidden_size)
        states, _ = self.cell(rows, (zeros, zeros)) if self.begin else self.cell(rows)
        outputs: Tensor = self.head(states[:, -1])
        return outputs


def planned(module: nn.Module, time: int = TIME) -> tuple[bool, str]:
    """Whether clients of a model are trained together, or why not."""
    rng = np.random.default_rng(0)
    sample = Examples.of_arrays(rng.normal(size=(10, time, IN)).astype(np.float32), np.arange(10) % 3)
    training = Training(batch_size=10, device="cpu")
    found, why = stacked_for(module, functional.cross_entropy, training, 0.0, torch.device("cpu"), sample)
    return found is not None, why


def test_the_steps_through_time_count_as_work() -> None:
    assert planned(Sentences(16)) == (True, "")
    state = 2 * 10 * 4 * 48 * 48  # a batch's product with the state, in one step
    long = MOST_WORK // state + 2
    assert planned(Sentences(48), long) == (False, "a step of the model is bound by its arithmetic")
    assert planned(Sentences(48), long // 2) == (True, "")


def test_long_sequences_go_one_by_one() -> None:
    assert planned(Sentences(4), recurrent.MOST_TIME) == (True, "")
    assert planned(Sentences(4), recurrent.MOST_TIME + 1) == (False, "the model cannot be trained for many at once: TypeError")


def test_a_gru_gains_over_any_time() -> None:
    assert planned(Sentences(4, nn.GRU), 20 * recurrent.MOST_TIME) == (True, "")
    assert planned(Sentences(48, nn.GRU), MOST_WORK // (2 * 10 * 3 * 48 * 48) + 2) == (False, "a step of the model is bound by its arithmetic")


def test_a_model_that_gives_the_first_state_goes_one_by_one() -> None:
    assert planned(Sentences(6, begin=True)) == (False, "the model cannot be trained for many at once: TypeError")


def test_the_module_itself_computes_as_it_did_before() -> None:
    module, rows = Sentences(6), torch.ones(2, recurrent.MOST_TIME + 1, IN)
    before = module(rows)
    for time in (TIME, recurrent.MOST_TIME + 1):
        planned(module, time)
        assert torch.equal(module(rows), before)
    assert planned(module) == (True, "")
