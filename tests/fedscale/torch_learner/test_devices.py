from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedscale.errors import PlanError
from fedscale.learner import Training
from fedscale.torch_learner import devices, one_thread, stacked
from fedscale.torch_learner.devices import WORKSPACE, Footprint, device_of, exact, forkable, half, room, seeded
from fedscale.torch_learner.examples import Examples
from fedscale.torch_learner.stacked import MOST_ON_GPU, Stacked, stacked_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    devices.present.cache_clear()
    with one_thread():
        yield
    devices.present.cache_clear()


def refused(*_: object) -> NoReturn:
    raise AssertionError("a GPU was asked for")


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose second GPU of 80 GB is the one in use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30, major=9))


# ------------------------------------------------------------------------------------------------------------- which device


def test_whoever_asks_for_the_processor_touches_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("is_available", "current_device", "init", "is_initialized"):
        monkeypatch.setattr(torch.cuda, name, refused)
    assert device_of("cpu") == CPU


def test_the_gpu_in_use_is_taken_and_told_to_repeat_itself(second: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE[0], raising=False)
    assert device_of("auto") == device_of("cuda") == CUDA
    assert os.environ[WORKSPACE[0]] == ":4096:8"
    monkeypatch.setenv(WORKSPACE[0], ":16:8")
    assert device_of("auto") == CUDA
    assert os.environ[WORKSPACE[0]] == ":16:8", "what a site has set stays"


def test_without_a_gpu_only_whoever_insists_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: next(answers))
    assert device_of("auto") == CPU
    with pytest.raises(PlanError, match="which this machine does not have"):
        device_of("cuda")
    assert not list(answers), "it was asked, and once: asking takes a while"


def test_a_process_that_sees_a_gpu_is_not_forked(second: None) -> None:
    assert not forkable()


def test_a_process_that_sees_none_may_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", refused)
    assert forkable()


@pytest.mark.parametrize(("generation", "floats"), [(7, torch.float16), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_precision_is_mixed_with_the_floats_that_need_no_scaling_where_there_are_any(
    generation: int, floats: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=generation))
    assert half(CUDA) is floats
    assert half(CPU) is torch.bfloat16


# ------------------------------------------------------------------------------------------------------------- exactness


def settings() -> tuple[Any, ...]:
    memory: Any = torch.utils.deterministic
    return (
        torch.get_deterministic_debug_mode(),
        memory.fill_uninitialized_memory,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


def test_a_gpu_computes_in_full_precision_and_in_one_order_and_is_left_as_it_was() -> None:
    before = settings()
    assert before[:4] == (0, True, "highest", True), "torch's own"
    with exact(CUDA):
        assert settings() == (1, False, "highest", False, True, False)
    assert settings() == before
    with pytest.raises(KeyError), exact(CUDA):
        raise KeyError
    assert settings() == before


def test_who_asked_for_more_keeps_it_and_who_asked_for_less_gets_it_back() -> None:
    torch.set_deterministic_debug_mode("error")
    torch.set_float32_matmul_precision("medium")
    try:
        with exact(CUDA):
            assert settings()[:3] == (2, False, "highest")
        assert settings()[:3] == (2, True, "medium")
    finally:
        torch.set_deterministic_debug_mode("default")
        torch.set_float32_matmul_precision("highest")


def test_on_the_processor_nothing_is_set() -> None:
    before = settings()
    with exact(CPU), seeded(3, CPU):
        assert settings() == before


def test_chance_is_seeded_and_put_back() -> None:
    torch.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    with seeded(9, CPU):
        own = torch.rand(3)
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(own, torch.rand(3, generator=torch.Generator().manual_seed(9)))


# ------------------------------------------------------------------------------------------------------------- memory


def test_a_footprint_is_the_most_that_was_there_at_once() -> None:
    kept = torch.ones(1000)
    with Footprint() as seen:
        one = kept + 1
        assert (seen.now, seen.peak) == (4000, 4000)
        one.add_(1).view(10, 100).t()
        assert seen.now == 4000, "neither changes in place nor views are memory"
        two = one * 2
        del one
        gc.collect()
        assert (seen.now, seen.peak) == (4000, 8000)
        three = two.double()
    assert (seen.now, seen.peak) == (12_000, 12_000)
    del two, three
    gc.collect()
    assert (seen.now, seen.peak) == (0, 12_000)


def test_rows_move_where_they_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Examples.of(torch.zeros(6, 4), torch.tensor([0, 1, 2, 0, 1, 4]))
    assert rows.on(CPU) is rows
    meta = torch.device("meta")
    monkeypatch.setattr("fedscale.torch_learner.examples.room", lambda _: 6 * 4 * 4 + 6 * 8)
    moved = rows.on(meta)
    assert (moved.device, moved.classes, len(moved)) == (meta, 5, 6)
    monkeypatch.setattr("fedscale.torch_learner.examples.room", lambda _: 6 * 4 * 4 + 6 * 8 - 1)
    assert rows.on(meta) is rows


def test_a_share_of_all_memory_is_for_clients(second: None) -> None:
    assert room(CUDA) == 20 << 30


def trainer() -> Stacked:
    torch.manual_seed(1)
    rows = Examples.of(torch.randn(12, 4), torch.arange(12) % 3)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    found, why = stacked_for(module, functional.cross_entropy, Training(batch_size=5, device="cpu"), 0.0, CPU, rows)
    assert found is not None, why
    return found


def test_as_many_go_together_as_find_room_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer()
    parameters = 4 * (4 * 6 + 6 + 6 * 3 + 3)
    assert 2 * parameters <= ours.held <= 20 * parameters, "at least weights and gradients"
    monkeypatch.setattr(ours, "_device", CUDA)
    monkeypatch.setattr(ours, "_fitting", MOST_ON_GPU)
    each = ours.held + 100 * (4 + 4) * 4
    for fitting, most in ((0.5, 1), (1, 1), (2.9, 2), (70, 64), (1e6, MOST_ON_GPU)):
        monkeypatch.setattr(stacked, "room", lambda _, fitting=fitting: int(each * fitting))
        assert ours.most(100) == most
    assert ours.block(50) == ours.block(100_000) == MOST_ON_GPU


def test_size_keeps_no_model_from_a_gpu() -> None:
    wide = nn.Sequential(nn.Linear(4, 9000), nn.Linear(9000, 3))
    training = Training(device="cpu")
    assert stacked._unfit(wide, training, CPU) == "everybody's weights would cost more than they save"
    assert not stacked._unfit(wide, training, CUDA)


class Small:
    """A device with memory for a few clients at once."""

    def __init__(self, ours: Stacked, clients: int, error: Callable[[], BaseException]) -> None:
        self.sizes = list[int]()
        self._whole, self._clients, self._error = ours._trained, clients, error

    def trained(self, model: Any, examples: Any, *rest: Any) -> Any:
        self.sizes.append(len(examples))
        if len(examples) > self._clients:
            raise self._error()
        return self._whole(model, examples, *rest)


OUT = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("CUDA error: out of memory"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT)
def test_where_memory_runs_out_clients_are_trained_in_halves(error: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer()
    rows = [Examples.of(torch.randn(12, 4), torch.arange(12) % 3) for _ in range(7)]
    seeds, weights = tuple(range(7)), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    first = ours.first()
    expected = ours.train(first, rows, seeds, weights, 0.05)
    small = Small(ours, 2, error)
    monkeypatch.setattr(ours, "_trained", small.trained)
    found = ours.train(first, rows, seeds, weights, 0.05)
    assert small.sizes == [7, 3, 1, 2, 4, 2, 2]
    assert np.abs(found.delta - expected.delta).max() < 1e-7
    assert found.delta.dtype == np.float32
    assert found.losses == pytest.approx(expected.losses)
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    assert ours.most(12) == 2, "no more at once from now on"


def test_other_errors_and_a_client_for_which_there_is_no_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, rows = trainer(), Examples.of(torch.randn(12, 4), torch.arange(12) % 3)
    first = ours.first()
    for clients, error in ((9, lambda: RuntimeError("a shape does not fit")), (1, OUT[0])):
        small = Small(ours, 0, error)
        monkeypatch.setattr(ours, "_trained", small.trained)
        with pytest.raises(RuntimeError, match="shape|memory"):
            ours.train(first, [rows] * clients, range(clients), [1.0] * clients)
        assert small.sizes == [clients]
