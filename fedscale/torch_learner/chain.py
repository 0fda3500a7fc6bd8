"""Reads a module as a chain of linear layers and elementwise functions, where it is one.

Such a chain can be trained for many clients at once, see ``fedscale.torch_learner.factored``. Anything else is said to
be none, with the reason, and is trained one client after the other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

Elementwise: TypeAlias = Callable[[Tensor], Tensor]

MODULES = (
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.Softplus,
    nn.Hardtanh,
    nn.ReLU6,
    nn.SELU,
    nn.LogSigmoid,
    nn.Softsign,
)
FUNCTIONS = (
    torch.relu, torch.tanh, torch.sigmoid, functional.relu, functional.tanh, functional.sigmoid, functional.gelu, functional.silu, functional.elu,
    functional.leaky_relu, functional.softplus, functional.relu6, functional.selu, functional.logsigmoid,
)  # fmt: skip
METHODS = ("relu", "tanh", "sigmoid")
RECTIFIERS = (torch.relu, functional.relu, "relu")
CHANGING = ("inplace",)


@dataclass(frozen=True)
class Dense:
    """A linear layer and the names of its parameters; no bias is an empty name."""

    weight: str
    bias: str
    inputs: int
    outputs: int


Stage: TypeAlias = Dense | Elementwise


def chain_of(module: nn.Module) -> tuple[list[Stage], str]:
    """The stages of a module, features flattened first; or none and why not."""
    if type(module) is nn.Linear and (only := _part("", module)) is not None:
        return _checked([only], module)
    try:
        graph = fx.Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError, NotImplementedError) as error:
        return [], f"the model's forward pass depends on more than shapes: {type(error).__name__}"
    parts = dict(module.named_modules())
    stages: list[Stage] = []
    before: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if before is not None:
                return [], "the model has several inputs"
        elif node.all_input_nodes != [before]:
            return [], f"'{node.name}' takes more than the result before it"
        elif node.op != "output":
            stage = _stage(node, parts)
            if stage is None:
                return [], f"'{node.name}' is neither a linear layer nor elementwise"
            stages += [stage] if stage is not _flat else []
            if stage is _flat and any(isinstance(earlier, Dense) for earlier in stages):
                return [], f"'{node.name}' flattens within the model"
        before = node
    return _checked(stages, module)


def _stage(node: fx.Node, parts: dict[str, nn.Module]) -> Stage | None:
    """One node of the graph as a stage, if it can be one."""
    target: Any = node.target
    if node.op == "call_module":
        return _part(target, parts[target])
    if target in RECTIFIERS and len(node.args) == 1:
        return torch.relu
    settings = {name: value for name, value in node.kwargs.items() if name not in CHANGING}
    if node.op == "call_function" and target in FUNCTIONS and len(node.args) == 1:
        return lambda values: target(values, **settings)
    if node.op == "call_method" and target in METHODS:
        return operator.methodcaller(target)
    flattens = (node.op == "call_method" and target == "flatten") or (node.op == "call_function" and target is torch.flatten)
    return _flat if flattens and (node.args[1:], settings) in (((1,), {}), ((), {"start_dim": 1})) else None


def _part(name: str, part: nn.Module) -> Stage | None:
    """One layer as a stage, if it can be one; a layer with hooks does more than its class says."""
    if any(len(vars(part)[hooks]) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")):
        return None
    if type(part) is nn.Linear:
        prefix = f"{name}." if name else ""
        return Dense(f"{prefix}weight", f"{prefix}bias" if "bias" in dict(part.named_parameters()) else "", part.in_features, part.out_features)
    if type(part) is nn.Flatten and (part.start_dim, part.end_dim) == (1, -1):
        return _flat
    if type(part) is nn.Identity or (type(part) is nn.Dropout and part.p == 0):
        return _same
    if type(part) is nn.ReLU:
        return torch.relu
    if type(part) in MODULES:
        settings = {name: value for name, value in vars(part).items() if not name.startswith("_") and name not in ("training", *CHANGING)}
        return type(part)(**settings)
    return None


def _checked(stages: list[Stage], module: nn.Module) -> tuple[list[Stage], str]:
    """The chain, if all of the module's state is in linear layers that are used once."""
    dense = [stage for stage in stages if isinstance(stage, Dense)]
    used = sorted(name for stage in dense for name in (stage.weight, stage.bias) if name)
    state = dict(module.named_parameters())
    if not dense or used != sorted(state) or list(module.buffers()):
        return [], "the model has state outside of linear layers that are used once"
    if not all(entry.requires_grad and entry.dtype is torch.float32 for entry in state.values()):
        return [], "a parameter is frozen or not float32"
    return stages, ""


def _flat(values: Tensor) -> Tensor:
    return values


def _same(values: Tensor) -> Tensor:
    return values
