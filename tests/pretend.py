"""A device that computes on the processor and is as strict as a GPU: mixed devices raise, and whoever waits for it is counted.

Torch knows it as a device of its own, with gradients and ``torch.func``. A process that has it cannot fork any more, as one
with a GPU: tests that use it run in a process of their own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NAME = "pretend"
MIXED = torch.library.Library("_", "IMPL")  # mixed precision is full precision here
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
# What a GPU lets stand on the host: places to read and write at, which it fetches.
PLACES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
# What needs a value, or a size that depends on values, before the host can go on.
WAITS = ("_local_scalar_dense", "nonzero", "unique", "_unique2", "unique_consecutive", "bincount", "masked_select", "equal", "is_nonzero")


class Pretended(Tensor):
    """A tensor on the device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @property
    def data(self) -> Tensor:
        """As of any tensor."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = _held(value)

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as of any other device."""
        raise TypeError("cannot convert a tensor of this device to numpy; use Tensor.cpu() to copy it first")

    def tolist(self) -> Any:
        """The values, waited for."""
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        """Where the values lie."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        """Where the values begin."""
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Outside of the mode nothing is computed."""
        raise RuntimeError(f"{func} was called outside of the device")


class Pretence(TorchDispatchMode):
    """Computes what is asked of the device.

    ``waits`` counts by name what makes the host wait for it, ``carried`` the copies ``to`` and ``from`` it, ``launches`` all else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.carried, self.launches = Counter[str](), Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        kwargs = dict(kwargs or {})
        given = _tensors((args, kwargs))
        here = any(isinstance(each, Pretended) for each in given)
        told = kwargs.get("device")
        wanted = torch.device(told).type == NAME if told is not None else here
        if not here and not wanted:
            return func(*args, **kwargs)
        if func in COPIES:
            self._carry(func, args, here=here, there=isinstance(args[0], Pretended) if func is aten.copy_.default else wanted)
        else:
            self._launch(func, args, given)
        if told is not None:
            kwargs["device"] = torch.device("cpu")
        raw_args, raw_kwargs = tree_map(_held, (args, kwargs))
        return self._answer(func, args, kwargs, func(*raw_args, **raw_kwargs), wrap=wanted)

    def _carry(self, func: Any, args: Any, *, here: bool, there: bool) -> None:
        """Count a copy between the host and the device."""
        source = args[1] if func is aten.copy_.default else args[0]
        if isinstance(source, Pretended) != there and (here or there):
            self.carried["to" if there else "from"] += 1
            self.waits["copy to the host"] += not there

    def _launch(self, func: Any, args: Any, given: list[Tensor]) -> None:
        """Count what is computed; refuse tensors of two devices."""
        name = func._schema.name.removeprefix("aten::")
        self.launches += 1
        self.waits[name] += name in WAITS
        others = [each for each in given if not isinstance(each, Pretended) and each.ndim]
        if others and func in PLACES and isinstance(args[0], Pretended):
            places = _tensors(args[1])
            others = [each for each in others if all(each is not place for place in places)]
            self.waits["places on the host"] += 1
        if others:
            raise RuntimeError(f"expected all tensors to be on the same device, but {func} was given some on {NAME} and some on cpu")
        if func in PLACES and any(each.dtype in (torch.bool, torch.uint8) for each in _tensors(args[1])):
            self.waits["places by truth"] += 1

    def _answer(self, func: Any, args: Any, kwargs: Any, found: Any, *, wrap: bool) -> Any:
        """What comes out; tensors that were changed in place are themselves."""
        changed = {id(_held(each)): each for each in _tensors((args, kwargs)) if isinstance(each, Pretended)}

        def outside(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in changed:
                return changed[id(value)]
            return Pretended(value) if wrap else value

        return tree_map(outside, found)


def _tensors(values: Any) -> list[Tensor]:
    """All tensors in a tree of arguments."""
    found: list[Tensor] = []
    tree_map(lambda value: found.append(value) if isinstance(value, Tensor) else None, values)
    return found


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


class Backend:
    """What torch asks of a device's module; what is drawn comes from the host's generator."""

    def is_available(self) -> bool:
        """It is there."""
        return True

    def is_initialized(self) -> bool:
        """From the beginning."""
        return True

    def device_count(self) -> int:
        """One."""
        return 1

    def current_device(self) -> int:
        """The first."""
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        """It has no generator of its own."""

    def manual_seed_all(self, seed: int) -> None:
        """As above."""

    def get_rng_state(self, device: object = None) -> Tensor:
        """Nothing."""
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        """As above."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """What precision can be mixed with."""
        return [torch.bfloat16]


def device() -> torch.device:
    """The device, which torch knows from now on."""
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
        MIXED.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return torch.device(NAME, 0)
