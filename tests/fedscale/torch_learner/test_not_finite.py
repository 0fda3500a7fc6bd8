"""Rows with numbers that are not finite are told from training that diverges, by their columns and never by a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedscale.data import Dataset, Population, from_arrays
from fedscale.errors import AppError, Cause, DataError, UpdateRejected
from fedscale.privacy.dp import DP
from fedscale.torch_learner import TorchLearner
from fedscale.torch_learner.examples import Examples
from fedscale_simulations.failures import failure_of
from fedscale_simulations.simulator import simulate
from tests.fedscale.torch_samples import Rows, app, classes, evaluate, first, linear, train, training

NAMES = ("age", "dose", "weight", "height")


def spoilt(column: int = 1, value: float = np.nan, names: tuple[str, ...] = NAMES) -> Dataset:
    """Sound rows but for one cell."""
    data = classes()
    data.x[7, column] = value
    return replace(data, columns=names)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (spoilt(), "the features hold NaN (column 'dose')"),
        (spoilt(3, -np.inf), "the features hold infinite numbers (column 'height')"),
        (spoilt(names=()), "the features hold NaN (position 1)"),
        (Rows(spoilt()), "the features hold NaN (position 1)"),
    ],
)
def test_rows_that_cannot_be_learnt_from_name_their_columns(data: Any, told: str) -> None:
    learner = TorchLearner(app())
    for attempt in (lambda: train(learner, data), lambda: evaluate(learner, data, first(learner))):
        with pytest.raises(DataError) as caught:
            attempt()
        assert (caught.value.what, caught.value.hint) == (told, "fill such values in, or leave their rows out")
        assert failure_of(caught.value).cause is Cause.DATA


def test_a_missing_class_is_not_taken_for_a_model_that_does_not_fit() -> None:
    data = classes()
    lacking = from_arrays(data.x, np.where(np.arange(40) == 39, np.nan, data.y))
    with pytest.raises(DataError, match="^the labels hold NaN; fill"):
        train(TorchLearner(app()), lacking, training=training(batch_size=4))
    with pytest.raises(AppError, match="do not fit labels"):
        train(TorchLearner(app()), from_arrays(data.x, data.y + 0.5))


def test_one_clients_missing_class_is_no_other_clients_fault() -> None:
    sound = classes()
    clients = Population.of({"sound": sound, "ward": from_arrays(sound.x, np.where(np.arange(40) == 3, np.nan, sound.y))})
    assert [part.y.dtype for part in clients.values()] == [np.int64, np.float32]
    train(TorchLearner(app()), clients["sound"])
    measured = Population.of({"sound": sound, "measured": from_arrays(sound.x, sound.y + 0.5), "ward": clients["ward"]})
    assert {part.y.dtype for part in measured.values()} == {np.dtype(np.float32)}


def test_a_missing_number_to_predict_is_told_as_well() -> None:
    data = classes()
    learner = TorchLearner(app(lambda: nn.Linear(4, 1), functional.mse_loss))
    with pytest.raises(DataError, match="the labels hold infinite numbers"):
        train(learner, from_arrays(data.x, np.where(np.arange(40) == 5, np.inf, data.y)))


def test_features_and_labels_are_told_together_and_of_many_columns_the_first() -> None:
    wide = from_arrays(np.full((9, 11), np.nan), np.full(9, np.inf))
    with pytest.raises(DataError) as caught:
        train(TorchLearner(app(lambda: nn.Linear(11, 1), functional.mse_loss)), wide)
    assert caught.value.what == "the features hold NaN (positions 0, 1, 2, 3, 4, 5, 6, 7 and 3 more) and the labels hold infinite numbers"


def test_what_the_app_fills_in_is_not_held_against_the_data() -> None:
    learner = TorchLearner(app(prepare=lambda data: replace(data, x=np.nan_to_num(data.x))))
    train(learner, spoilt())
    with pytest.raises(UpdateRejected, match=r"^the loss is not finite \(training diverged\); lower train\.optimizer\.lr$"):
        train(learner, spoilt(), {name: array * np.float32(1e38) for name, array in first(learner).items()}, training=training(1e30))


def test_what_the_app_makes_of_sound_rows_is_told_as_the_apps() -> None:
    def halved(data: Dataset) -> Dataset:
        return replace(data, x=np.where(data.x > 0, data.x, np.float32(np.nan)))

    with pytest.raises(AppError, match=r"App\.prepare makes NaN") as caught:
        train(TorchLearner(app(prepare=halved)), classes())
    assert failure_of(caught.value).cause is Cause.CODE
    with pytest.raises(DataError, match="column 'dose'"):
        train(TorchLearner(app(prepare=halved)), spoilt())


def test_rows_are_looked_at_only_when_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Examples, "require_finite", lambda *_: pytest.fail("sound rows were looked at"))
    learner = TorchLearner(app())
    trained, _ = train(learner, classes())
    assert evaluate(learner, classes(), trained)["loss"] > 0


@pytest.mark.parametrize("engine", ["sequential", "vectorized", "pool"])
def test_every_engine_names_the_client_and_its_column(engine: str) -> None:
    clients = {f"site-{n}": replace(classes(seed=n), columns=NAMES) for n in range(5)} | {"ward": spoilt(2)}
    ended = simulate(app(linear), clients, rounds=2, clients={"min_per_round": 5}, engine=engine, workers=2, train={"device": "cpu"})
    assert ended.status == "completed", ended.record.reason
    for row in ended.record.rounds:
        held_out = row.phase == "evaluate"
        told = {name: (failure.cause, failure.what) for name, failure in row.failures.items()}
        assert told in ({}, {"ward": (Cause.DATA, "the features hold NaN (column 'weight')")}), row
        assert told or held_out
    assert torch.isfinite(torch.as_tensor(ended.vector)).all()


def test_training_that_hides_rows_tells_of_a_missing_class_too() -> None:
    lacking = classes()
    clients = {"ward": from_arrays(lacking.x, np.where(np.arange(40) == 0, np.nan, lacking.y))}
    dp = DP(epsilon=8, delta=1e-3, clip=1.0, unit="record")
    ended = simulate(app(linear), clients, rounds=1, clients={"min_per_round": 1}, evaluate={"every": 0}, privacy=dp)
    assert "ward: data: the labels hold NaN" in ended.record.reason
