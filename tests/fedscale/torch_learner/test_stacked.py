from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale.errors import UpdateRejected
from fedscale.learner import Training
from fedscale.sampling import Shuffle
from fedscale.torch_learner import one_thread, settle_fork, stacked
from fedscale.torch_learner.examples import Examples
from fedscale.torch_learner.stacked import Stacked, stacked_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


class Gated(nn.Module):
    """Takes another path for other values, which no kernel for many can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.layer(rows)
        return outputs if outputs.sum() > 0 else -outputs


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))


def tied() -> nn.Module:
    module, first = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)), nn.Linear(4, 4)
    module[0], module[1].weight = first, first.weight
    return module


def frozen() -> nn.Module:
    module = normalised()
    next(module.parameters()).requires_grad_(False)
    return module


def rows(count: int = 12, seed: int = 0, width: int = 4) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples.of_arrays(rng.normal(size=(count, width)).astype(np.float32), np.arange(count) % 3)


def training(**rest: object) -> Training:
    return Training.model_validate({"batch_size": 5, "epochs": 2, "optimizer": {"lr": 0.1}, "device": "cpu", **rest})


def made(make: Callable[[], nn.Module], wanted: Training | None = None, sample: Examples | None = None) -> tuple[Stacked | None, str]:
    torch.manual_seed(1)
    return stacked_for(make(), functional.cross_entropy, wanted or training(), 0.0, CPU, sample or rows())


def trainer(wanted: Training | None = None) -> Stacked:
    found, why = made(normalised, wanted)
    assert found is not None, why
    return found


def by_hand(model: dict[str, Tensor], own: Examples, seed: int, wanted: Training) -> tuple[dict[str, Tensor], float]:
    """The change and the mean loss of a client that trains with torch's own optimiser."""
    module, shuffle = normalised(), Shuffle()
    module.load_state_dict(model)
    kinds: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = kinds[wanted.optimizer.name](module.parameters(), lr=wanted.optimizer.lr)  # type: ignore[call-arg]
    shuffle.seed(seed)
    batches = [some for _ in range(wanted.epochs) for some in torch.from_numpy(shuffle.draw(len(own))).split(wanted.batch_size)]
    total, seen = 0.0, 0
    for some in batches[: wanted.max_steps]:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(own.features[some]), own.targets[some])
        torch.autograd.backward(loss)
        optimizer.step()
        total, seen = total + float(loss.detach()) * len(some), seen + len(some)
    return {name: entry.detach() - model[name] for name, entry in module.state_dict().items()}, total / seen


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [None, 1, 4])
def test_clients_together_learn_what_each_learns_with_torchs_own_optimiser(name: str, steps: int | None) -> None:
    wanted = training(optimizer={"name": name, "lr": 0.01}, max_steps=steps)
    ours, own, weights = trainer(wanted), [rows(seed=at) for at in range(3)], [1.0, 2.0, 5.0]
    first = ours.first()
    learnt = ours.train(first, own, (7, 8, 9), weights)
    model = {part: torch.from_numpy(first[part].copy()) for part in first}
    theirs = [by_hand(model, each, seed, wanted) for each, seed in zip(own, (7, 8, 9), strict=True)]
    for part in first:
        expected = sum(weight * change[part] for weight, (change, _) in zip(weights, theirs, strict=True)) / sum(weights)
        assert torch.allclose(torch.from_numpy(first.schema.unpack(learnt.delta)[part].copy()), torch.as_tensor(expected), atol=2e-6)
    assert learnt.losses == pytest.approx([loss for _, loss in theirs], rel=1e-5)


def test_training_leaves_the_model_as_it_was() -> None:
    ours = trainer()
    first = ours.first()
    before = first.vector.copy()
    ours.train(first, [rows(), rows(seed=1)], (1, 2), (1.0, 1.0))
    assert (first.vector == before).all()
    assert (ours.first().vector == before).all()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "the model has buffers, or weights that are shared"),
        (tied, "the model has buffers, or weights that are shared"),
        (frozen, "a parameter is frozen or not float32"),
        (lambda: nn.Linear(4, 3).double(), "a parameter is frozen or not float32"),
        (
            lambda: nn.Sequential(nn.Linear(4, 9000), nn.Linear(9000, 3)),
            "everybody's weights would cost more than they save",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), "the model cannot be trained for many at once: RuntimeError"),
        (Gated, "the model cannot be trained for many at once: RuntimeError"),
        (lambda: nn.Linear(5, 3), "the model cannot be trained for many at once: RuntimeError"),
        (lambda: nn.Linear(4, 2), "the model cannot be trained for many at once: AppError"),
        (lambda: nn.Sequential(nn.RNN(4, 3)), "there is no kernel for such recurrent layers of many"),
    ],
)
def test_what_cannot_go_together_is_said(make: Callable[[], nn.Module], why: str) -> None:
    assert made(make) == (None, why)


@pytest.mark.parametrize("raised", [ZeroDivisionError, AssertionError, KeyError, SystemExit], ids=lambda kind: kind.__name__)
def test_whatever_a_loss_raises_is_for_each_client_to_say(raised: type[BaseException]) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise raised(len(outputs), len(targets))

    rows = Examples(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))
    name = "RuntimeError" if raised is SystemExit else raised.__name__
    assert stacked_for(nn.Linear(4, 3), loss, Training(), 0.0, CPU, rows) == (None, f"the model cannot be trained for many at once: {name}")


def test_work_and_not_time_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(normalised, training(amp=True)) == (None, "mixed precision is asked for")
    work = 2 * 5 * (4 * 6 + 6 * 3)  # a batch of five rows through both layers
    monkeypatch.setattr(stacked, "MOST_WORK", work)
    assert made(normalised)[0] is not None
    monkeypatch.setattr(stacked, "MOST_WORK", work - 1)
    assert made(normalised) == (None, "a step of the model is bound by its arithmetic")


def test_as_many_go_together_as_stay_in_the_cache() -> None:
    ours = trainer()
    assert [ours.most(count) for count in (1, 12, 10_000, 10**9)] == [64, 64, (1 << 20) // 40_000, 1]
    assert [ours.alike(count) for count in (1, 12)] == [1, 12]


def test_clients_with_other_rows_do_not_go_together() -> None:
    ours = trainer()
    for other in (rows(11), rows(width=5), Examples(rows().features, rows().targets.float())):
        with pytest.raises(UpdateRejected, match="another shape"):
            ours.train(ours.first(), [rows(), other], (1, 2), (1.0, 1.0))


def test_training_that_diverges_is_refused() -> None:
    ours, wild = trainer(), rows(seed=1)
    wild.features[3, 2] = torch.inf
    with pytest.raises(UpdateRejected, match="the loss is not finite"):
        ours.train(ours.first(), [rows(), wild], (1, 2), (1.0, 1.0))


def test_a_forked_process_keeps_its_memory_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: type("Library", (), {"mallopt": staticmethod(lambda *what: asked.append(what))}))
    settle_fork()
    assert asked == [(-3, 1 << 30), (-1, 1 << 30), (-2, 16 << 20)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    settle_fork()
    assert torch.get_num_threads() == 1
