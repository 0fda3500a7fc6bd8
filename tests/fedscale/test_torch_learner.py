from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale.data import Dataset, from_arrays
from fedscale.errors import AppError, DataError, PlanError, UpdateRejected
from fedscale.learner import App, Learner, Phase, Result, Training, Work
from fedscale.metrics import histogram_auc
from fedscale.torch_learner import TorchLearner, as_learner, one_thread, substitutes
from tests.fedscale.torch_samples import Rows, app, binary, classes, evaluate, first, linear, same, state, to_train, train, training


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


class Noisy(nn.Module):
    """Dropout, batch norm, an integer buffer that counts, a buffer that does not persist."""

    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        self.scratch += 1
        outputs: Tensor = self.body(features)
        return outputs * self.scratch[0]


def by_hand(module: nn.Module, data: Dataset, seed: int, wanted: Training) -> nn.Module:
    """The loop that a user would write."""
    optimizer = torch.optim.SGD(module.parameters(), wanted.optimizer.lr, wanted.optimizer.momentum)
    bits = np.random.Philox(key=seed)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    torch.manual_seed(seed)
    for _ in range(wanted.epochs):
        for rows in torch.from_numpy(np.argsort(bits.random_raw(len(data)), kind="stable")).split(wanted.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    return module


# ------------------------------------------------------------------------------------------------------------ first model


def test_first_model_is_that_of_a_seeded_torch() -> None:
    arrays = first(TorchLearner(app(Noisy)), seed=11)
    torch.manual_seed(11)
    expected = state(Noisy())
    assert list(arrays) == [name for name, array in expected.items() if array.dtype == np.float32]
    assert same(arrays, {name: expected[name] for name in arrays})


def test_first_model_needs_no_data_and_copies() -> None:
    learner = TorchLearner(app())
    arrays = first(learner)
    arrays["weight"][:] = 0
    assert first(learner)["weight"].any()


def test_float_buffers_travel_and_integer_buffers_stay() -> None:
    arrays = first(TorchLearner(app(Noisy)))
    assert "body.1.running_mean" in arrays
    assert "body.1.num_batches_tracked" not in arrays
    assert "scratch" not in arrays


@pytest.mark.parametrize(("dtype", "travels"), [(torch.float64, "float64"), (torch.float16, "float16"), (torch.bfloat16, "float32")])
def test_dtypes_are_kept_where_numpy_has_them(dtype: torch.dtype, travels: str) -> None:
    arrays = first(TorchLearner(app(lambda: linear().to(dtype))))
    assert {str(array.dtype) for array in arrays.values()} == {travels}


def test_the_callers_random_state_is_left_alone() -> None:
    learner = TorchLearner(app(Noisy))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(learner, classes())
    evaluate(learner, classes())
    assert torch.equal(torch.rand(3), expected)


# --------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_is_the_plain_torch_loop(momentum: float) -> None:
    wanted = training(0.3, momentum=momentum, epochs=3)
    learner, data = TorchLearner(app(Noisy)), classes()
    arrays = first(learner, seed=2)
    trained, _ = train(learner, data, arrays, training=wanted, seed=9)
    torch.manual_seed(2)
    expected = state(by_hand(Noisy(), data, 9, wanted))
    assert same(trained, {name: expected[name] for name in trained})


def test_training_lowers_the_loss_and_reports_the_mean() -> None:
    learner, data = TorchLearner(app()), classes()
    once, loss = train(learner, data, training=training(batch_size=64))
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    weight, bias = (torch.from_numpy(array) for array in first(learner).values())
    assert loss == pytest.approx(float(functional.cross_entropy(x @ weight.T + bias, y)), rel=1e-6)
    assert train(learner, data, once, training=training(epochs=20))[1] < loss / 2


def test_the_loss_of_several_epochs_is_the_mean_over_all() -> None:
    learner, data = TorchLearner(app()), classes()
    losses, arrays = [], first(learner)
    for _ in range(3):
        arrays, loss = train(learner, data, arrays, training=training(batch_size=64))
        losses.append(loss)
    assert train(learner, data, training=training(batch_size=64, epochs=3))[1] == pytest.approx(np.mean(losses), rel=1e-5)


def test_examples_are_the_distinct_rows_of_the_site() -> None:
    learner = TorchLearner(app())
    assert learner.run(to_train(learner, classes(21), training=training(epochs=3))).examples == 21
    assert learner.run(to_train(learner, classes(21), training=training(max_steps=1))).examples == 21


def test_max_steps_cuts_epochs_short() -> None:
    learner, data = TorchLearner(app()), classes(40)
    one_epoch, _ = train(learner, data, training=training(epochs=1))
    cut, _ = train(learner, data, training=training(epochs=9, max_steps=5))
    assert same(one_epoch, cut)
    assert not same(one_epoch, train(learner, data, training=training(epochs=9, max_steps=4))[0])


def test_the_same_seed_gives_the_same_bits_whatever_came_before() -> None:
    learner, data = TorchLearner(app(Noisy)), classes()
    arrays = first(learner)
    alone, _ = train(learner, data, arrays)
    train(learner, classes(seed=8), arrays, seed=99)
    evaluate(learner, classes(seed=9))
    assert same(train(learner, data, arrays)[0], alone)
    assert same(train(TorchLearner(app(Noisy)), data, arrays)[0], alone)
    assert not same(train(learner, data, arrays, seed=8)[0], alone)


def test_local_buffers_start_every_piece_of_work_as_they_were_built() -> None:
    learner, data = TorchLearner(app(Noisy)), classes(12)
    once = evaluate(learner, data)["loss"]
    train(learner, data)
    assert np.array_equal(evaluate(learner, data)["loss"], once)


def test_local_buffers_are_alike_on_every_node() -> None:
    class Shuffled(nn.Module):
        order: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.randperm(4))
            self.layer = nn.Linear(4, 3)

        def forward(self, features: Tensor) -> Tensor:
            outputs: Tensor = self.layer(features[:, self.order])
            return outputs

    here, there, data = TorchLearner(app(Shuffled)), TorchLearner(app(Shuffled)), classes()
    arrays = first(here)
    assert list(arrays) == ["layer.weight", "layer.bias"]
    train(here, data, arrays, seed=1)
    train(there, data, arrays, seed=2)
    assert same(train(here, data, arrays)[0], train(there, data, arrays)[0])


def test_the_global_model_is_not_changed_and_may_be_read_only() -> None:
    learner, data = TorchLearner(app()), classes()
    arrays = {name: array.copy() for name, array in first(learner).items()}
    for array in arrays.values():
        array.flags.writeable = False
    kept = {name: array.copy() for name, array in arrays.items()}
    trained, _ = train(learner, data, arrays)
    assert same(arrays, kept)
    assert not same(trained, kept)


def test_a_result_is_not_changed_by_the_next_piece_of_work() -> None:
    learner = TorchLearner(app())
    trained, _ = train(learner, classes())
    kept = {name: array.copy() for name, array in trained.items()}
    train(learner, classes(seed=3))
    assert same(trained, kept)


def test_the_model_is_built_once_for_all_clients() -> None:
    built: list[int] = []

    def build() -> nn.Module:
        built.append(1)
        return linear()

    learner = TorchLearner(app(build))
    arrays = first(learner)
    for seed in range(4):
        train(learner, classes(seed=seed), arrays)
        evaluate(learner, classes(seed=seed), arrays)
    assert len(built) == 2  # the first model, and the resident module


def test_frozen_parameters_travel_unchanged() -> None:
    def half_frozen() -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        module[0].requires_grad_(requires_grad=False)
        return module

    learner = TorchLearner(app(half_frozen))
    arrays = first(learner)
    trained, _ = train(learner, classes(), arrays)
    assert np.array_equal(trained["0.weight"], arrays["0.weight"])
    assert not np.array_equal(trained["1.weight"], arrays["1.weight"])


def test_a_parameter_that_the_loss_does_not_reach_stays() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, features: Tensor) -> Tensor:
            outputs: Tensor = self.used(features)
            return outputs

    learner = TorchLearner(app(Idle))
    arrays = first(learner)
    trained, _ = train(learner, classes(), arrays, proximal=0.5, training=training(name="adam"))
    assert np.array_equal(trained["idle.weight"], arrays["idle.weight"])
    assert not np.array_equal(trained["used.weight"], arrays["used.weight"])


def test_proximal_pulls_towards_the_global_model() -> None:
    learner, data = TorchLearner(app()), classes()
    arrays = first(learner)

    def distance(mu: float) -> float:
        trained, _ = train(learner, data, arrays, proximal=mu, training=training(epochs=10))
        return float(np.sqrt(sum(np.square(trained[name] - arrays[name]).sum() for name in arrays)))

    free, weak, strong = distance(0.0), distance(0.1), distance(5.0)
    assert strong < weak < free
    assert strong > 0


def test_proximal_is_the_gradient_of_the_penalty() -> None:
    learner, data, mu = TorchLearner(app()), classes(16), 0.7
    arrays = first(learner, seed=2)
    trained, _ = train(learner, data, arrays, proximal=mu, seed=9, training=training(epochs=4, batch_size=16))
    torch.manual_seed(2)
    module = linear()
    anchor = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(torch.from_numpy(data.x)), torch.from_numpy(data.y))
        penalty = sum((p - a).square().sum() for p, a in zip(module.parameters(), anchor, strict=True))
        (loss + mu / 2 * penalty).backward()
        optimizer.step()
    for name, expected in state(module).items():
        assert np.allclose(trained[name], expected, atol=1e-6)


def test_batch_norm_statistics_are_trained_and_loaded() -> None:
    learner, data = TorchLearner(app(Noisy)), classes()
    arrays = first(learner)
    trained, _ = train(learner, data, arrays)
    assert not np.array_equal(trained["body.1.running_mean"], arrays["body.1.running_mean"])
    assert (
        evaluate(learner, data, trained)["loss"] != evaluate(learner, data, {**trained, "body.1.running_mean": arrays["body.1.running_mean"]})["loss"]
    )


def test_batch_norm_survives_a_last_batch_of_one_row() -> None:
    learner = TorchLearner(app(Noisy))
    trained, _ = train(learner, classes(17))
    assert np.isfinite(trained["body.0.weight"]).all()
    sizes: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(targets))
        return functional.cross_entropy(outputs, targets)

    plain = TorchLearner(app(loss=loss))
    train(plain, classes(17))
    assert sizes == [8, 8, 1]


def test_every_row_is_seen_once_an_epoch_in_a_new_order() -> None:
    seen: list[float] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.extend(targets.tolist())
        return functional.mse_loss(outputs, targets)

    data = from_arrays(np.ones((20, 4)), np.arange(20) + 0.5)
    train(TorchLearner(app(lambda: nn.Linear(4, 1), loss)), data, training=training(0.001, epochs=2))
    assert sorted(seen[:20]) == sorted(seen[20:]) == data.y.tolist()
    assert seen[:20] != seen[20:]


def test_progress_goes_up_to_one() -> None:
    learner, shown = TorchLearner(app()), list[float]()
    learner.run(to_train(learner, classes(40), training=training(epochs=2), progress=shown.append))
    assert shown == [step / 10 for step in range(1, 11)]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_other_optimisers_learn_too(name: str) -> None:
    learner, data = TorchLearner(app(metrics=["accuracy"])), classes()
    trained, _ = train(learner, data, training=training(0.05, name, epochs=10))
    assert evaluate(learner, data, trained, ["accuracy"])["accuracy"] >= 36


def test_divergence_is_told_from_other_faults() -> None:
    learner = TorchLearner(app(lambda: nn.Linear(4, 1), functional.mse_loss))
    data = from_arrays(np.full((16, 4), 1e4), np.arange(16) + 0.5)
    with pytest.raises(UpdateRejected, match="not finite") as caught:
        train(learner, data, training=training(1.0, epochs=50))
    assert "lower train.optimizer.lr" in caught.value.hint
    with pytest.raises(UpdateRejected, match="not finite"):
        evaluate(learner, data, {"weight": np.full((1, 4), np.nan, np.float32), "bias": np.zeros(1, np.float32)})


@pytest.mark.parametrize("squash", [nn.Tanh, nn.Sigmoid])
def test_an_infinite_feature_that_saturates_is_no_divergence(squash: type[nn.Module]) -> None:
    rows = classes(20)
    spoilt = rows.x.copy()
    spoilt[3, 2] = np.inf
    learner = TorchLearner(app(lambda: nn.Sequential(nn.Linear(4, 5), squash(), nn.Linear(5, 3))))
    with pytest.raises(DataError, match=r"the features hold infinite numbers \(position 2\)"):
        train(learner, from_arrays(spoilt, rows.y), training=training(batch_size=20, max_steps=1))


def test_divergence_ends_training_with_the_epoch() -> None:
    steps: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        steps.append(1)
        return functional.cross_entropy(outputs, targets) * float("nan")

    with pytest.raises(UpdateRejected, match="not finite"):
        train(TorchLearner(app(loss=loss)), classes(16), training=training(epochs=1000))
    assert len(steps) == 2


# -------------------------------------------------------------------------------------------------------- mixed precision


def test_mixed_precision_computes_in_bfloat16_and_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    class Looking(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            outputs = super().forward(features)
            seen.append(outputs.dtype)
            return outputs

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.dtype is torch.float32
        return functional.cross_entropy(outputs, targets)

    monkeypatch.setattr(substitutes, "LEAST_PRODUCTS", 1)
    learner, data = TorchLearner(app(lambda: Looking(4, 3), loss)), classes()
    exact, exact_loss = train(learner, data, training=training(epochs=5))
    rounded, rounded_loss = train(learner, data, training=training(epochs=5, amp=True))
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert {str(array.dtype) for array in rounded.values()} == {"float32"}
    assert not same(exact, rounded)
    assert rounded_loss == pytest.approx(exact_loss, rel=0.05)
    assert evaluate(learner, data, rounded, amp=True)["loss"] == pytest.approx(evaluate(learner, data, rounded)["loss"], rel=0.05)


def test_cuda_is_not_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    learner = TorchLearner(app())
    with pytest.raises(PlanError, match="CUDA") as caught:
        train(learner, classes(), training=training(device="cuda"))
    assert caught.value.where == "train.device"
    assert train(learner, classes(), training=training(device="auto"))[1] > 0


# ------------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_sums_over_all_rows_and_batches() -> None:
    learner, data = TorchLearner(app(metrics=["accuracy"])), classes(37)
    sums = evaluate(learner, data, metrics=["accuracy", "brier"])
    weight, bias = first(learner).values()
    logits = torch.from_numpy(data.x @ weight.T + bias)
    targets = torch.from_numpy(data.y)
    assert sums["loss"] == pytest.approx(float(functional.cross_entropy(logits, targets, reduction="sum")), rel=1e-5)
    assert sums["accuracy"] == float((logits.argmax(1) == targets).sum())
    assert sums["brier"] == pytest.approx(float((logits.softmax(1) - functional.one_hot(targets)).square().sum()), rel=1e-5)


def test_evaluation_does_not_train() -> None:
    learner, data = TorchLearner(app(Noisy)), classes()
    arrays = first(learner)
    kept = {name: array.copy() for name, array in arrays.items()}
    assert np.array_equal(evaluate(learner, data, arrays)["loss"], evaluate(learner, data, arrays)["loss"])
    assert same(arrays, kept)


def test_own_metrics_get_outputs_and_targets_as_the_loss_does() -> None:
    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.shape == targets.shape
        return (outputs - targets).abs()

    learner = TorchLearner(app(lambda: nn.Linear(4, 1), functional.mse_loss, {"distance": distance}))
    data = from_arrays(np.zeros((9, 4)), np.full(9, 1.5))
    bias = float(first(learner)["bias"][0])
    assert evaluate(learner, data, metrics=["distance"])["distance"] == pytest.approx(9 * abs(bias - 1.5), rel=1e-5)


def test_own_metrics_may_be_arrays_and_may_replace_ours() -> None:
    learner = TorchLearner(app(metrics={"accuracy": lambda outputs, targets: np.full(len(targets), 0.25)}))
    assert evaluate(learner, classes(8), metrics=["accuracy"])["accuracy"] == 2.0


def test_metrics_that_the_app_does_not_list_can_be_asked_for() -> None:
    learner = TorchLearner(binary())
    data = classes(30, kinds=2)
    sums = evaluate(learner, data, metrics=["auc", "accuracy", "brier"])
    assert sums["auc"].shape == (512,)
    assert sums["auc"].sum() == 30
    assert 0 <= (histogram_auc(sums["auc"]) or 0) <= 1


def test_evaluation_shows_progress() -> None:
    learner, shown = TorchLearner(app()), list[float]()
    learner.run(Work(Phase.EVALUATE, 1, 3, first(learner), classes(20), Training(batch_size=2), progress=shown.append))
    assert shown == [0.4, 0.8, 1.0]


# ------------------------------------------------------------------------------------------------------------------- data


def test_a_torch_dataset_gives_the_same_bits_and_is_read_once() -> None:
    learner, data = TorchLearner(app()), classes()
    rows = Rows(data)
    expected, _ = train(learner, data)
    assert same(train(learner, rows)[0], expected)
    train(learner, rows)
    assert rows.reads == len(data)


def test_prepare_is_applied_once_to_each_dataset() -> None:
    calls: list[int] = []

    def scale(data: Dataset) -> Dataset:
        calls.append(len(data))
        return from_arrays(data.x / 10, data.y)

    learner = TorchLearner(app(prepare=scale), keep=2)
    part, other = classes(16), classes(8)
    for _ in range(3):
        train(learner, part)
        evaluate(learner, other)
    assert calls == [16, 8]
    plain = TorchLearner(app())
    assert same(train(learner, part)[0], train(plain, from_arrays(part.x / 10, part.y))[0])


def test_only_so_many_datasets_are_kept() -> None:
    calls: list[int] = []

    def note(data: Dataset) -> Dataset:
        calls.append(len(data))
        return data

    learner = TorchLearner(app(prepare=note), keep=1)
    parts = [classes(8), classes(9)]
    for part in [*parts, *parts]:
        train(learner, part)
    assert calls == [8, 9, 8, 9]


@pytest.mark.parametrize("data", [None, [1, 2], {"x": 1}, np.zeros(3)], ids=["none", "list", "dict", "array"])
def test_data_of_another_kind_are_refused(data: object) -> None:
    with pytest.raises(DataError, match=f"cannot learn from {type(data).__name__}"):
        train(TorchLearner(app()), data)


def test_what_prepare_returns_is_checked() -> None:
    with pytest.raises(AppError, match="prepare returned list"):
        train(TorchLearner(app(prepare=lambda _: [])), classes())


# ----------------------------------------------------------------------------------------------------------------- faults


def one_class(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (app(lambda: "module"), "the app's model is str"),
        (app(nn.ReLU), "no parameters to train"),
        (app(lambda: linear().requires_grad_(requires_grad=False)), "no parameters to train"),
        (app(lambda: nn.LazyLinear(3)), "size of parameter 'weight' is open"),
        (app(lambda: nn.Linear(4, 3, dtype=torch.complex64)), "parameter 'weight' is of dtype torch.complex64"),
        (app(loss=one_class), r"the loss returned shape \(8,\)"),
        (app(loss=lambda outputs, targets: 0.5), "the loss returned float"),
        (app(lambda: nn.Linear(4, 1)), "cross entropy needs one output for each class"),
        (app(lambda: nn.Linear(4, 1), nn.CrossEntropyLoss()), "cross entropy needs one output for each class"),
        (app(lambda: nn.Linear(4, 2)), "a label is too large for the model's 2 outputs"),
        (app(lambda: nn.Sequential(linear(), nn.Flatten(0))), r"the model returned shape \(24,\) for 8 examples"),
        (app(lambda: nn.LSTM(4, 3)), "the model returned tuple"),
    ],
)
def test_faults_of_an_app_are_named(faulty: App, message: str) -> None:
    with pytest.raises(AppError, match=message):
        train(TorchLearner(faulty), classes())


def test_a_model_that_depends_on_the_site_is_refused() -> None:
    learner = TorchLearner(app())
    with pytest.raises(AppError, match="not the one that is being trained") as caught:
        train(learner, classes(), {"weight": np.zeros((3, 5), np.float32), "bias": np.zeros(3, np.float32)})
    assert caught.value.why == "tensor 'weight' has shape (3, 4) here and (3, 5) there"
    with pytest.raises(AppError) as caught:
        train(learner, classes(), {**first(learner), "extra": np.zeros(1, np.float32)})
    assert caught.value.why == "tensor 'extra' has shape none here and (1,) there"


def test_training_without_a_model_is_refused() -> None:
    with pytest.raises(AppError, match="there is no model to train"):
        TorchLearner(app()).run(Work(Phase.TRAIN, 1, 1, None, classes(), training()))


def test_unknown_metrics_are_named_with_the_closest() -> None:
    with pytest.raises(AppError, match=r"no metric 'acuracy'.*did you mean 'accuracy'"):
        TorchLearner(app(metrics=["acuracy"]))
    learner = TorchLearner(app(metrics={"distance": lambda outputs, targets: targets}))
    with pytest.raises(AppError, match="did you mean 'distance'"):
        evaluate(learner, classes(), metrics=["distanse"])
    with pytest.raises(AppError, match="known: loss, accuracy, auc, brier, distance; or give"):
        learner.check(["zzz"])


def test_metrics_are_declared_as_a_list_or_a_mapping() -> None:
    with pytest.raises(AppError, match="metrics are one text"):
        TorchLearner(app(metrics="auc"))
    for name in ("loss", "auc"):
        with pytest.raises(AppError, match=f"metric '{name}' cannot be redefined"):
            TorchLearner(app(metrics={name: lambda outputs, targets: targets}))


def test_an_own_metric_must_give_one_value_an_example() -> None:
    learner = TorchLearner(app(metrics={"mean": lambda outputs, targets: targets.float().mean()}))
    with pytest.raises(AppError, match=r"metric 'mean' returned shape \(\) for 16 examples"):
        evaluate(learner, classes(16), metrics=["mean"])


def test_no_message_carries_a_value_of_the_data() -> None:
    data = from_arrays(np.full((8, 4), 31337.0), np.full(8, 31337))
    for faulty in (app(lambda: nn.Linear(4, 2)), app(loss=lambda outputs, targets: targets), app(nn.Flatten)):
        with pytest.raises(AppError) as caught:
            train(TorchLearner(faulty), data)
        assert "31337" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- choice


def test_as_learner_takes_apps_and_learners() -> None:
    class Own:
        def run(self, work: Work) -> Result:
            return Result(work.arrays, 1)

    own = Own()
    assert isinstance(own, Learner)
    assert as_learner(own) is own
    assert isinstance(as_learner(app()), TorchLearner)
    with pytest.raises(AppError, match="the app is the class Own"):
        as_learner(Own)
    with pytest.raises(AppError, match="the app is of type str"):
        as_learner("app")


def test_one_thread_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with one_thread():
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
