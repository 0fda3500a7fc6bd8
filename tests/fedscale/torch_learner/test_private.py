from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedscale.data import Dataset, from_arrays
from fedscale.errors import AppError
from fedscale.learner import LocalOptimizer, Private, Result
from fedscale.torch_learner import TorchLearner, one_thread
from fedscale.torch_learner.clipping import Objective, OneByOne
from fedscale.torch_learner.private import PrivateSteps, Units
from fedscale.torch_learner.steps import Steps
from fedscale.vector import Arrays
from tests.fedscale.torch_samples import app, classes, first, to_train, training

KEY = bytes(32)
QUIET = Private("record", "dpsgd", 0.5, 1e-9, 1.0, 3, 40.0, KEY)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


class Counting(nn.Module):
    """A linear layer and buffers that change as rows go by."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.seen += features.detach().sum(0)
        outputs: Tensor = self.body(features)
        return outputs


def trained(learner: TorchLearner, data: Any, private: Private = QUIET, **rest: Any) -> Result:
    return learner.run(replace(to_train(learner, data, **rest), private=private))


def arrays(result: Result) -> Arrays:
    assert result.arrays is not None
    return result.arrays


def flat(tree: Arrays) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([np.asarray(each, np.float64).ravel() for each in tree.values()])


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def patients(rows: int = 40) -> Dataset:
    """Five rows for each patient."""
    return replace(classes(rows), groups=np.arange(rows) // 5)


def by_hand(learner: TorchLearner, data: Dataset, private: Private, optimizer: LocalOptimizer, proximal: float) -> Arrays:
    """DP-SGD without noise and with everybody in each step, written down with autograd and the learner's optimiser."""
    module = learner._module()
    start = {name: torch.from_numpy(each.copy()) for name, each in first(learner).items()}
    module.load_state_dict(start)
    steps = Steps(list(module.parameters()), optimizer, proximal)
    for _ in range(private.steps):
        total = [torch.zeros_like(own) for own in module.parameters()]
        for features, target in zip(torch.from_numpy(data.x), torch.from_numpy(data.y), strict=True):
            loss = nn.functional.cross_entropy(module(features[None]), target[None])
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            norm = float(torch.cat([each.flatten() for each in gradients]).norm())
            torch._foreach_add_(total, [each * min(1.0, private.clip / norm) for each in gradients])
        steps.follow([each / private.expected for each in total])
    return {name: entry.detach().numpy() for name, entry in module.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_training_without_noise_is_that_of_the_definition(optimizer: str) -> None:
    learner, data = TorchLearner(app(deep)), classes()
    name, momentum = ("sgd", 0.9) if optimizer == "momentum" else (optimizer, 0.0)
    how = training(0.05, name, momentum=momentum, weight_decay=0.01)
    result = trained(learner, data, training=how, proximal=0.1)
    expected = by_hand(learner, data, QUIET, how.optimizer, 0.1)
    for tensor, entry in arrays(result).items():
        np.testing.assert_allclose(entry, expected[tensor], atol=2e-5 if optimizer in ("sgd", "momentum") else 2e-4)
    assert result.private == QUIET
    assert dict(result.metrics) == {}, "the loss of the rows that are hidden stays where it is"


@pytest.mark.parametrize("way", ["dpsgd", "union"])
def test_an_empty_sample_is_noise_alone(way: Any) -> None:
    learner, data = TorchLearner(app()), classes()
    rare = replace(QUIET, way=way, sampling_rate=1e-12, noise_multiplier=2.0, steps=1)
    result = trained(learner, data, rare, training=training(0.5))
    change = flat(arrays(result)) - (0 if way == "union" else flat(first(learner)))
    assert (np.abs(change).max() > 0) == (way == "dpsgd")


def test_the_noise_of_a_model_has_the_standard_deviation_that_is_claimed() -> None:
    learner = TorchLearner(app(lambda: nn.Sequential(nn.Linear(4, 20_000), nn.Linear(20_000, 3))))
    loud = Private("record", "dpsgd", 0.5, 3.0, 1.0, 4, 16.0, KEY)
    quiet = replace(loud, noise_multiplier=1e-9)
    how = training(0.1)
    # Clipped gradients depend on where the noise has led, so the noise is that of the first step.
    loud, quiet = replace(loud, steps=1), replace(quiet, steps=1)
    data = classes(20)
    noise = flat(arrays(trained(learner, data, loud, training=how))) - flat(arrays(trained(learner, data, quiet, training=how)))
    assert noise.size > 1e5
    assert noise.std() == pytest.approx(0.1 * 3.0 * 0.5 / 16.0, rel=0.01)
    assert abs(noise.mean()) < 5 * noise.std() / math.sqrt(noise.size)


def test_each_step_has_its_own_noise() -> None:
    learner, data = TorchLearner(app()), classes(30)
    # Nobody is drawn, so that noise is all there is.
    alone = replace(QUIET, noise_multiplier=1.0, sampling_rate=1e-12)
    start = flat(first(learner))
    one, two, again = (flat(arrays(trained(learner, data, replace(alone, steps=steps)))) for steps in (1, 2, 1))
    assert np.array_equal(one, again), "a key gives the same training again"
    assert np.abs((two - one) - (one - start)).max() > 0.1 * np.abs(one - start).max()


def test_each_step_draws_a_sample_of_its_own() -> None:
    learner, data = TorchLearner(app()), classes(40)
    half = replace(QUIET, way="union", sampling_rate=0.5, steps=1)
    sums = [flat(arrays(trained(learner, data, replace(half, key=bytes([key]) * 32)))) for key in range(3)]
    assert len({each.tobytes() for each in sums}) == 3
    objective = Objective(nn.Linear(4, 3), lambda outputs, targets: (outputs, targets), nn.functional.cross_entropy)
    rows = torch.from_numpy(data.x), torch.from_numpy(data.y)
    steps = PrivateSteps(objective, OneByOne(objective), lambda at: (rows[0][at], rows[1][at]), Units.of(None, 40), half)
    drawn = [torch.cat([each.flatten() for each in steps.summed(step)]) for step in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_without_a_key_no_two_trainings_are_alike() -> None:
    learner, data = TorchLearner(app()), classes(30)
    secret = replace(QUIET, noise_multiplier=1.0, key=None)
    one, two = (flat(arrays(trained(learner, data, secret))) for _ in range(2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_one_unit_more_or_less_moves_the_sum_by_at_most_the_clip(unit: Any) -> None:
    learner, whole = TorchLearner(app(deep)), patients()
    private = replace(QUIET, unit=unit, way="union", steps=1, expected=1.0)
    how = training(1.0)
    reference = flat(arrays(trained(learner, whole, private, training=how)))
    moved = []
    for unit_rows in range(8) if unit == "patient" else range(0, 40, 5):
        kept = np.flatnonzero((whole.groups if unit == "patient" else np.arange(40)) != unit_rows)
        moved.append(np.linalg.norm(reference - flat(arrays(trained(learner, whole.take(kept), private, training=how)))))
    assert max(moved) <= 0.5 * (1 + 1e-6)
    assert max(moved) > 0.1, "the test has power"


def test_a_row_that_is_exchanged_for_a_monster_moves_the_sum_by_at_most_two_clips() -> None:
    learner, data = TorchLearner(app(deep)), classes()
    private = replace(QUIET, way="union", steps=1, expected=1.0)
    reference = flat(arrays(trained(learner, data, private, training=training(1.0))))
    for value in (1e30, np.inf, np.nan):
        wild = data.x.copy()
        wild[7] = value
        found = flat(arrays(trained(learner, replace(data, x=wild), private, training=training(1.0))))
        assert np.isfinite(found).all()
        assert np.linalg.norm(found - reference) <= 2 * 0.5 * (1 + 1e-6)


def test_a_patient_counts_once_however_many_rows_there_are() -> None:
    learner, few = TorchLearner(app()), classes(6)
    private = replace(QUIET, unit="patient", way="union", steps=1, expected=1.0)
    many = replace(few.take(np.repeat(np.arange(6), 7)), groups=np.repeat(np.arange(6), 7))
    one, other = (flat(arrays(trained(learner, data, private))) for data in (replace(few, groups=np.arange(6)), many))
    assert np.allclose(one, other, atol=1e-6)


def test_a_sample_in_pieces_is_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, data = TorchLearner(app(deep)), patients()
    for unit in ("record", "patient"):
        private = replace(QUIET, unit=unit, way="union", steps=1)
        whole = flat(arrays(trained(learner, data, private)))
        assert learner._way is not None
        monkeypatch.setattr(learner._way[1], "most", 7)
        np.testing.assert_allclose(flat(arrays(trained(learner, data, private))), whole, atol=1e-6)
        monkeypatch.undo()


def test_units_and_their_rows() -> None:
    units = Units.of(np.array(["b", "a", "b", "c", "a", "b"]), 6)
    assert [units.rows(at).tolist() for at in range(units.count)] == [[1, 4], [0, 2, 5], [3]]
    pieces = [(rows.tolist(), member.tolist()) for rows, member in units.pieces(np.array([0, 1, 2]), 4)]
    assert pieces == [([1, 4], [0, 0]), ([0, 2, 5, 3], [0, 0, 0, 1])]
    assert list(units.pieces(np.array([], np.int64), 4)) == []
    assert [rows.tolist() for rows, _ in Units.of(None, 3).pieces(np.arange(3), 2)] == [[0, 1], [2]]


def test_buffers_never_leave() -> None:
    learner, data = TorchLearner(app(Counting)), classes()
    for way in ("dpsgd", "union"):
        found = arrays(trained(learner, data, replace(QUIET, way=way)))
        assert found["seen"].tolist() == [0, 0, 0, 0]
        assert np.abs(found["body.weight"]).max() > 0


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_norm_is_refused_with_a_remedy(make: Any) -> None:
    learner = TorchLearner(app(lambda: nn.Sequential(nn.Linear(4, 3), make(3))))
    with pytest.raises(AppError, match="GroupNorm") as raised:
        learner.require_private("patient")
    assert raised.value.what == "batch norm cannot hide a patient"
    frozen = TorchLearner(app(lambda: nn.Sequential(nn.BatchNorm1d(4).requires_grad_(False), nn.Linear(4, 3))))
    with pytest.raises(AppError, match="batch norm"):
        trained(frozen, classes(), to_train(frozen, classes()).private or QUIET)


def test_preparation_must_take_each_row_by_itself() -> None:
    def centred(data: Dataset) -> Dataset:
        return replace(data, x=data.x - data.x.mean(0))

    def doubled(data: Dataset) -> Dataset:
        return replace(data, x=data.x * 2)

    def doubled_rows(data: Dataset) -> Dataset:
        return data.take(np.repeat(np.arange(len(data)), 2))

    for prepare in (centred, doubled_rows):
        with pytest.raises(AppError, match="each row by itself"):
            trained(TorchLearner(app(prepare=prepare)), classes())
    assert trained(TorchLearner(app(prepare=doubled)), classes()).private == QUIET


def test_training_without_privacy_goes_on_as_before_in_the_same_learner() -> None:
    data, fresh, used = classes(), TorchLearner(app(deep)), TorchLearner(app(deep))
    plain = arrays(fresh.run(to_train(fresh, data)))
    trained(used, data, replace(QUIET, noise_multiplier=1.0, key=None))
    again = arrays(used.run(to_train(used, data)))
    assert list(again) == list(plain)
    assert all(np.array_equal(again[name], plain[name]) for name in plain)
    assert used.run(to_train(used, data)).private is None


def test_rows_that_only_some_models_see_are_taken_one_by_one() -> None:
    class Fork(nn.Module):
        """Takes another layer for rows beyond the first few."""

        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, features: Tensor) -> Tensor:
            outputs: Tensor = self.near(features) + (self.far(features) if len(features) > 4 else 0 * self.far(features))
            return outputs if len(features) < 9 else self.near(features)

    learner, data = TorchLearner(app(Fork)), classes()
    private = replace(QUIET, way="union", steps=1)
    found = arrays(trained(learner, data, private))
    assert np.isfinite(flat(found)).all()
    assert np.linalg.norm(flat(found)) <= 40 * 0.5 * 0.1 / 40 * (1 + 1e-6)


def test_labels_that_do_not_fit_are_told_as_without_privacy() -> None:
    learner = TorchLearner(app(lambda: nn.Linear(4, 2)))
    with pytest.raises(AppError, match="too large for the model"):
        trained(learner, classes(), training=training())
    assert len(from_arrays([[1.0], [2.0]], [0, 1])) == 2


def test_the_first_client_of_a_process_draws_as_any_other() -> None:
    learner, data = TorchLearner(app(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))), classes()
    one, other = (arrays(trained(learner, data)) for _ in range(2))
    assert (flat(one) == flat(other)).all()
