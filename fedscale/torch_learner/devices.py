"""Where an app computes: on the processor, or on a GPU that is told to keep what a plan promises."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedscale.errors import PlanError

# Read by cuBLAS when it starts: without it equal products may differ in their last bits.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# What rows and clients may take of a device's memory; the rest is for whatever the model does with them, and for others.
SHARE = 4
WARN = 1  # of torch's modes: take the order that is always the same, and say so where there is none
AMPERE = 8  # the first generation that computes with bfloat16


@lru_cache(maxsize=1)
def present() -> bool:
    """Whether there is a CUDA device; asking takes a while."""
    return torch.cuda.is_available()


def device_of(wanted: str) -> torch.device:
    """The device a plan asks for; who asks for the processor touches no other.

    Raises:
        PlanError: there is no CUDA device.
    """
    if wanted == "cpu" or (wanted == "auto" and not present()):
        return torch.device("cpu")
    if not present():
        raise PlanError("the plan asks for CUDA, which this machine does not have", where="train.device", hint='use device = "auto"')
    os.environ.setdefault(*WORKSPACE)
    return torch.device("cuda", torch.cuda.current_device())


def forkable() -> bool:
    """Whether a process that has trained may be forked to train on.

    Torch starts a thread for the gradients of each GPU that it sees, even where only the processor computes, and refuses to
    take gradients in a process that is forked after that.
    """
    return torch.cuda.device_count() == 0


def room(device: torch.device) -> int:
    """How many bytes of a GPU's memory rows or clients may take: a share of all there is, and so the same on every day."""
    return torch.cuda.get_device_properties(device).total_memory // SHARE


def half(device: torch.device) -> torch.dtype:
    """The short floats in which a device mixes precision; half floats, whose gradients vanish unscaled, where it has no others."""
    old = device.type == "cuda" and torch.cuda.get_device_properties(device).major < AMPERE
    return torch.float16 if old else torch.bfloat16


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators as after ``torch.manual_seed(seed)``, put back afterwards; on a GPU as ``exact``."""
    if device.type == "cpu":
        with torch.random.fork_rng([]):
            # torch.manual_seed takes 0.15 ms to visit every kind of device, which is as long as a small client trains.
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng([device], device_type=device.type), exact(device):
        torch.default_generator.manual_seed(seed)
        torch.get_device_module(device).manual_seed(seed)
        yield


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full precision, and the same bits each time where torch can, on a GPU that would trade both for speed; as it was afterwards.

    Products and convolutions are otherwise rounded to ten bits (TF32), and sums taken in the order in which threads come.
    Where torch knows no other way it warns.
    """
    if device.type == "cpu":
        yield
        return
    memory: Any = torch.utils.deterministic
    repeated, products, filled = torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision(), memory.fill_uninitialized_memory
    try:
        memory.fill_uninitialized_memory = False
        # The same as torch.use_deterministic_algorithms, which imports torch's compiler for two seconds.
        torch.set_deterministic_debug_mode(max(repeated, WARN))
        torch.set_float32_matmul_precision("highest")
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.set_deterministic_debug_mode(repeated)
        memory.fill_uninitialized_memory = filled


class Footprint(TorchDispatchMode):
    """Adds up the memory of the tensors made under it; ``peak`` is the most that were there at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        found = func(*args, **(kwargs or {}))
        for storage in (each.untyped_storage() for each in tree_leaves(found) if isinstance(each, Tensor)):
            self._hold(storage)
        return found

    def _hold(self, storage: torch.UntypedStorage) -> None:
        """Count memory until it is given back."""
        key = storage._cdata  # noqa: SLF001 - how torch's own trackers tell one memory from another
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._give_back, key, storage.nbytes())

    def _give_back(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
