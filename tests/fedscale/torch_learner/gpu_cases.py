"""An app's training on a device as strict as a GPU, beside that on the processor: the same numbers, and no waiting between steps.

Run by ``test_gpu.py`` in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedscale.data import Dataset
from fedscale.learner import App, Phase, Private, Result, Training, Work
from fedscale.torch_learner import examples, learner, one_thread, stacked
from fedscale.torch_learner.learner import TorchLearner
from fedscale.torch_learner.resident import Resident
from fedscale.vector import Schema
from fedscale_simulations.engines import choice
from fedscale_simulations.simulator import simulate
from tests.pretend import Pretence, device
from tests.simulations.zoo import KINDS, LENGTH, VOCABULARY, WIDTH, ZOO, Kind

GPU, CPU = device(), torch.device("cpu")
OPTIMIZERS: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
    {"name": "adam", "lr": 0.01},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
]
# Torch trains recurrent layers of one client by a library of the GPU's maker, which is not here.
ALONE = {name: kind for name, kind in ZOO.items() if name not in ("reader", "gated")}
# Torch's rule for group norms of many ends a process whose device is written in Python.
MANY = {name: kind for name, kind in ZOO.items() if kind.together and name != "residual"}
HIDDEN = Private("record", "dpsgd", 0.5, 1.0, 0.5, 3, 12.0, bytes(32))


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let ``auto`` mean the device, which has room for anything."""
    monkeypatch.setattr(learner, "device_of", lambda wanted: CPU if wanted == "cpu" else GPU)
    monkeypatch.setattr(choice, "forkable", lambda: False)
    for module in (examples, stacked):
        monkeypatch.setattr(module, "room", lambda _: 1 << 30)
    with one_thread():
        yield


def training(where: str, **rest: Any) -> Training:
    return Training.model_validate({"batch_size": 10, "epochs": 2, "optimizer": {"lr": 0.1}, "device": where, **rest})


def client(kind: Kind, rows: int = 25) -> Dataset:
    return next(iter(kind.clients((rows,)).values()))


def work_for(app: App, data: object, **rest: Any) -> Work:
    """Training on the processor, from a first model that lies in one piece as in a run."""
    arrays = TorchLearner(app).run(Work(Phase.INIT, 0, 1, None, None, training("cpu"))).arrays
    assert arrays is not None
    schema = Schema.of(arrays)
    return Work(Phase.TRAIN, 1, 7, schema.unpack(schema.pack(arrays)), data, training("cpu", **rest))


def there(work: Work) -> Work:
    """The same on the device."""
    return replace(work, training=work.training.model_copy(update={"device": "auto"}))


def again(app: App, work: Work) -> tuple[Result, Pretence]:
    """What the second client of a learner comes to on the device, and what it took."""
    with Pretence() as quiet:
        known = TorchLearner(app)
        known.run(there(work))
    assert quiet.launches
    with Pretence() as seen:
        return known.run(there(work)), seen


def gap(one: Result, other: Result) -> float:
    assert one.arrays is not None
    assert other.arrays is not None
    return max(float(np.abs(array - other.arrays[name]).max()) for name, array in one.arrays.items())


@pytest.mark.parametrize("name", ALONE)
def test_a_client_learns_the_same_and_is_waited_for_once_an_epoch_and_once_in_the_end(name: str) -> None:
    for at, optimizer in enumerate(OPTIMIZERS):
        work = replace(work_for(ALONE[name].app, client(ALONE[name]), optimizer=optimizer), proximal=0.1 * (at % 2))
        expected = TorchLearner(ALONE[name].app).run(work)
        found, seen = again(ALONE[name].app, work)
        assert gap(found, expected) < 1e-6
        assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-6)
        assert +seen.waits == {"copy to the host": 3}


def test_what_is_carried_does_not_grow_with_the_steps() -> None:
    kind = ZOO["deep"]
    for size in (25, 2):
        seen = again(kind.app, work_for(kind.app, client(kind), batch_size=size))[1]
        # The model, features, labels, the order of each epoch; and back the losses of each and the model.
        assert seen.carried == {"to": 5, "from": 3}


def test_rows_for_which_there_is_no_room_go_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = ZOO["written"]
    work = work_for(kind.app, client(kind))
    monkeypatch.setattr(examples, "room", lambda _: 100)
    found, seen = again(kind.app, work)
    assert gap(found, TorchLearner(kind.app).run(work)) < 1e-6
    assert seen.carried == {"to": 1 + 2 * 6, "from": 3}


def test_mixed_precision_trains_and_evaluates() -> None:
    kind = ZOO["written"]
    work = work_for(kind.app, client(kind), amp=True)
    plain = TorchLearner(kind.app).run(replace(work, training=training("cpu")))
    assert gap(again(kind.app, work)[0], plain) < 1e-6


@pytest.mark.parametrize("name", ["logistic", "heads"])
def test_metrics_are_the_same(name: str) -> None:
    kind = ZOO[name]
    metrics = ("loss", "accuracy", "brier", *(["auc"] if kind.classes == 2 else []))
    work = replace(work_for(kind.app, client(kind), batch_size=2), phase=Phase.EVALUATE, metrics=metrics)
    expected, (found, seen) = TorchLearner(kind.app).run(work), again(kind.app, work)
    assert set(found.metrics) == set(metrics)
    for metric in metrics:
        assert found.metrics[metric] == pytest.approx(expected.metrics[metric], rel=1e-6)
    assert seen.carried["to"] == 3


@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("batchnorm", "dropout")])
def test_a_hidden_client_learns_the_same_and_is_waited_for_once_a_step(name: str) -> None:
    kind = ALONE[name]
    work = replace(work_for(kind.app, client(kind)), private=HIDDEN)
    found, seen = again(kind.app, work)
    assert gap(found, TorchLearner(kind.app).run(work)) < 1e-6
    assert +seen.waits == {"_local_scalar_dense": HIDDEN.steps, "copy to the host": 1}
    # The model, features and labels; for each step which rows it draws, whose they are, what each counts, and the noise.
    assert seen.carried == {"to": 3 + 4 * HIDDEN.steps, "from": 1}


def test_a_hidden_clients_embeddings_are_waited_for_once_a_step() -> None:
    kind, rng = ZOO["tokens"], np.random.default_rng(2)
    data = TensorDataset(torch.from_numpy(rng.integers(0, VOCABULARY, (25, LENGTH))), torch.arange(25) % KINDS)
    work = replace(work_for(kind.app, data), private=HIDDEN)
    found, seen = again(kind.app, work)
    assert gap(found, TorchLearner(kind.app).run(work)) < 1e-6
    assert +seen.waits == {"_local_scalar_dense": HIDDEN.steps, "copy to the host": 1}


def test_patients_are_hidden_alike() -> None:
    kind, groups = ZOO["softmax"], np.arange(25) // 3
    data = replace(client(kind), groups=groups)
    work = replace(work_for(kind.app, data), private=replace(HIDDEN, unit="patient"))
    assert gap(again(kind.app, work)[0], TorchLearner(kind.app).run(work)) < 1e-6


def together(kind: Kind, clip: float | None, where: torch.device) -> tuple[Any, Pretence]:
    """What three clients learn at once on a device, and what it took."""
    torch.manual_seed(1)
    module, rows = kind.model(), [TorchLearner(kind.app).examples_of(data) for data in kind.clients((25, 25, 25)).values()]
    with Pretence():
        found, why = stacked.stacked_for(module, kind.app.loss, training("cpu"), 0.1, where, rows[0])
        assert found is not None, why
        first = found.first()
    with Pretence() as seen:
        return found.train(first, rows, (1, 2, 3), (1.0, 2.0, 3.0), clip), seen


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", MANY)
def test_clients_together_learn_the_same_and_are_waited_for_in_the_end(name: str, clip: float | None) -> None:
    expected, (found, seen) = together(MANY[name], clip, CPU)[0], together(MANY[name], clip, GPU)
    assert np.abs(found.delta - expected.delta).max() < 1e-6
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    # The model, features, labels, orders and weights; back the change, the losses and the norms where there are any.
    assert seen.carried == {"to": 5, "from": 2 + (clip is not None)}
    assert +seen.waits == {"copy to the host": 2 + (clip is not None)}


def test_a_model_that_fills_a_gpu_alone_goes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = ZOO["written"]
    rows = TorchLearner(kind.app).examples_of(client(kind))
    monkeypatch.setattr(stacked, "MOST_WORK", 1)
    with Pretence():
        assert stacked.stacked_for(kind.model(), kind.app.loss, training("auto"), 0.0, GPU, rows)[0] is not None
        monkeypatch.setattr(stacked, "MOST_WORK_ON_GPU", 1)
        alone = stacked.stacked_for(kind.model(), kind.app.loss, training("auto"), 0.0, GPU, rows)
    assert alone == (None, "a step of the model is bound by its arithmetic")


@pytest.mark.parametrize(("where_wanted", "engine"), [("auto", "auto"), ("auto", "vectorized"), ("cpu", "pool")])
def test_a_whole_run_beside_the_device_ends_where_one_without_it_does(where_wanted: str, engine: str) -> None:
    kind = ZOO["written"]

    def run(where: str, wanted: str) -> Any:
        options: dict[str, Any] = {"rounds": 2, "seed": 3, "train": {"batch_size": 10, "device": where}, "evaluate": {"holdout": 0.2, "every": 2}}
        return simulate(kind.app, kind.clients((20,) * 12 + (13,) * 5), engine=wanted, **options)

    expected = run("cpu", "sequential")
    with Pretence() as seen:
        found = run(where_wanted, engine)
    assert bool(seen.launches) == (where_wanted == "auto")
    assert found.status == "completed", found.summary()
    assert found.record.extra["engine"]["workers"] == 1
    for name, array in expected.model.items():
        assert np.abs(array - found.model[name]).max() < 1e-5


@pytest.mark.parametrize(("name", "apart"), [("reader", 4), ("gated", 4), ("residual", 3), ("written", 0)])
def test_a_model_goes_in_and_comes_out_in_one_copy_whatever_keeps_memory_of_its_own(name: str, apart: int) -> None:
    kind = ZOO[name]
    model = work_for(kind.app, client(kind)).arrays
    assert model is not None
    with Pretence():
        resident = Resident(kind.model(), GPU)
    with Pretence() as seen:
        resident.load(model)
        back = resident.arrays()
    assert len(resident._turned) == apart
    assert seen.carried == {"to": 1, "from": 1}
    assert all((back[part] == model[part]).all() for part in model)
    assert all((resident.shared[part].held.numpy() == model[part]).all() for part in model)  # type: ignore[attr-defined]


class Careless(nn.Module):
    """Adds a constant of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shift = nn.Linear(WIDTH, KINDS), torch.ones(KINDS)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.body(features)
        return outputs + self.shift


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    app = App(model=Careless, loss=functional.cross_entropy)
    work = work_for(app, client(ZOO["softmax"]))
    TorchLearner(app).run(work)
    with Pretence(), pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        TorchLearner(app).run(there(work))
    with Pretence(), pytest.raises(TypeError, match=r"use Tensor\.cpu\(\)"):
        torch.ones(2, device=GPU).numpy()


def waiting(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that looks at its value."""
    loss = functional.cross_entropy(outputs, targets)
    return loss if float(loss.detach()) >= 0 else -loss


def test_whoever_waits_in_every_step_is_seen() -> None:
    kind = ZOO["softmax"]
    app = App(model=kind.model, loss=waiting)
    assert (+again(app, work_for(app, client(kind)))[1].waits)["_local_scalar_dense"] == 6


def in_a_fork(work: Callable[[], object]) -> str:
    """What a forked process says of work."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            work()
            said = b"done"
        except RuntimeError as error:
            said = str(error).encode()
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read().decode()
    os.waitpid(child, 0)
    return told


def test_a_process_that_sees_a_device_cannot_be_forked_even_where_it_trains_on_the_processor() -> None:
    kind = ZOO["softmax"]
    work = work_for(kind.app, client(kind))
    TorchLearner(kind.app).run(work)
    assert in_a_fork(lambda: None) == "done"
    assert "autograd's threading in combination with fork" in in_a_fork(lambda: TorchLearner(kind.app).run(work))
