"""The same on a GPU as on the processor; where there is one: ``FEDSCALE_TEST_GPUS=1 make test ONLY=tests/fedscale/torch_learner/test_cuda.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedscale.learner import Phase, Private, Result, Training, Work
from fedscale.torch_learner import TorchLearner, one_thread, stacked
from fedscale.torch_learner.devices import device_of
from fedscale.vector import Arrays
from fedscale_simulations.simulator import simulate
from tests.simulations.zoo import ZOO, Kind

pytestmark = [pytest.mark.requires("cuda"), pytest.mark.filterwarnings("ignore:.*deterministic")]
HIDDEN = Private("record", "dpsgd", 0.5, 1e-9, 0.5, 3, 12.0, bytes(32))
OPTIMIZERS: list[dict[str, Any]] = [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9}, {"name": "adam", "lr": 0.01}]
# What is drawn on a GPU is drawn by its own generator.
SURE = {name: kind for name, kind in ZOO.items() if name != "dropout"}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


def work_for(kind: Kind, device: str, **rest: Any) -> Work:
    training = Training.model_validate({"batch_size": 10, "epochs": 2, "optimizer": {"lr": 0.1}, "device": device, **rest})
    arrays = TorchLearner(kind.app).run(Work(Phase.INIT, 0, 1, None, None, training)).arrays
    return Work(Phase.TRAIN, 1, 7, arrays, next(iter(kind.clients((25,)).values())), training)


def both(kind: Kind, private: Private | None = None, **rest: Any) -> tuple[Result, Result, Arrays]:
    """What a client learns on the processor and on the GPU, and from what model on."""
    works = [replace(work_for(kind, device, **rest), private=private) for device in ("cpu", "cuda")]
    assert works[0].arrays is not None
    return TorchLearner(kind.app).run(works[0]), TorchLearner(kind.app).run(works[1]), works[0].arrays


def gap(one: Arrays | None, other: Arrays | None, first: Arrays) -> float:
    """How far two models are apart at most, of the largest change since the first."""
    assert one is not None
    assert other is not None
    return max(float(np.abs(one[name] - other[name]).max()) for name in first) / max(float(np.abs(one[name] - first[name]).max()) for name in first)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("name", SURE)
def test_a_client_learns_the_same(name: str, optimizer: dict[str, Any]) -> None:
    one, other, first = both(SURE[name], optimizer=optimizer)
    assert gap(one.arrays, other.arrays, first) < 1e-4
    assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in SURE if name != "batchnorm"])
def test_a_hidden_client_learns_the_same(name: str) -> None:
    one, other, first = both(SURE[name], HIDDEN)
    assert gap(one.arrays, other.arrays, first) < 1e-4


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", [name for name, kind in SURE.items() if kind.together])
def test_clients_together_learn_the_same(name: str, clip: float | None) -> None:
    kind, learnt = SURE[name], []
    rows = [TorchLearner(kind.app).examples_of(data) for data in kind.clients((25, 25, 25)).values()]
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        training = work_for(kind, device).training
        found, why = stacked.stacked_for(kind.model(), kind.app.loss, training, 0.1, device_of(device), rows[0])
        assert found is not None, why
        learnt.append(found.train(found.first(), rows, (1, 2, 3), (1.0, 2.0, 3.0), clip))
    assert np.abs(learnt[0].delta - learnt[1].delta).max() < 1e-4 * np.abs(learnt[0].delta).max()
    assert learnt[1].losses == pytest.approx(learnt[0].losses, rel=1e-5)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_the_same_seed_gives_the_same_bits(name: str, amp: bool) -> None:
    results = [TorchLearner(ZOO[name].app).run(work_for(ZOO[name], "cuda", amp=amp)) for _ in range(2)]
    one, other = (result.arrays for result in results)
    assert one is not None
    assert other is not None
    assert all((one[part] == other[part]).all() for part in one)


@pytest.mark.parametrize("engine", ["auto", "sequential", "vectorized", "pool"])
def test_a_whole_run_completes_in_one_process_and_learns(engine: str) -> None:
    kind = ZOO["written"]
    done = simulate(kind.app, kind.clients((20,) * 40), rounds=3, seed=3, engine=engine, train={"device": "cuda", "optimizer": {"lr": 0.1}})
    assert done.status == "completed", done.summary()
    note = done.record.extra["engine"]
    assert isinstance(note, dict)
    assert note["workers"] == 1


def test_the_processor_is_used_where_the_plan_says_so_beside_a_gpu() -> None:
    kind = ZOO["written"]
    done = simulate(kind.app, kind.clients((20,) * 40), rounds=2, seed=3, engine="pool", workers=2, train={"device": "cpu"})
    assert done.status == "completed", done.summary()
    assert done.record.extra["engine"] != {"form": "sequential", "workers": 2, "why": "asked for"}
