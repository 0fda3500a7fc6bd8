"""The fastest kernels for the layers at hand, where torch's own choice is not.

On AMD's processors the matrix product of torch's BLAS leaves the widest vector units idle, and oneDNN's is faster: twice
where those units are 512 bits wide (Zen 5), and a tenth where they are half of that (Zen 4), which only the largest products
gain. Layers and batches too small to gain keep torch's own kernel.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_PRODUCTS = 4_000_000
ROWS = 384
ZEN_5 = 26
AMD = "AuthenticAMD"


class OneDnnLinear(torch.autograd.Function):
    """``x @ w.T + b`` whose three products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs of shape ``(..., out)`` for features of shape ``(..., in)``."""
        ctx.save_for_backward(features, weight)
        ctx.biased = bias is not None
        return product(features, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of features, weight and bias."""
        features, weight = ctx.saved_tensors
        rows, inputs = gradient.reshape(-1, gradient.shape[-1]), features.reshape(-1, features.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if wanted[0] else None,
            product(rows.t(), inputs.t()) if wanted[1] else None,
            rows.sum(0) if ctx.biased and wanted[2] else None,
        )


def product(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``features @ weight.T + bias`` by oneDNN, float32 on the processor; only where ``available``."""
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise.default(features, weight, bias, "none", [], "")  # noqa: SLF001 - torch has no public name for it
    return outputs


def available() -> bool:
    """Whether this build of torch has oneDNN's product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@lru_cache(maxsize=1)
def gains() -> bool:
    """Whether oneDNN's product is the faster one for large factors on this machine's processor.

    A fact and not a measurement: a simulator and all workers of a machine must agree on it, because the two kernels differ
    in the last bits.
    """
    return available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and processor("vendor_id") == AMD


@lru_cache(maxsize=1)
def full_width() -> bool:
    """Whether it gains for the products of training as well: where vector units are half as wide, calling it costs what it gains."""
    family = processor("cpu family")
    return gains() and family.isdecimal() and int(family) >= ZEN_5


@lru_cache(maxsize=1)
def slow_halves() -> bool:
    """Whether products in bfloat16 are slower than in full precision on this machine's processor; not where nobody knows.

    Intel's AMX and AMD's vector units take many more of them at once. Intel's vector units take half as many (80 for 155
    GFLOP/s on a Xeon whose AMX is hidden), and processors with neither take them apart.
    """
    flags = set(processor("flags").split())
    return bool(flags) and "amx_bf16" not in flags and not ("avx512_bf16" in flags and processor("vendor_id") == AMD)


def processor(fact: str, file: Path = Path("/proc/cpuinfo")) -> str:
    """A fact about the processor, as Linux has it; empty where that cannot be read."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(fact)), "")


def install(module: nn.Module, device: torch.device) -> None:
    """Let a module's large linear layers compute by oneDNN where that is faster."""
    layers = [part for part in module.modules() if type(part) is nn.Linear and "forward" not in vars(part)]
    layers = [part for part in layers if part.weight.dtype is torch.float32 and part.weight.numel() * ROWS >= LEAST_PRODUCTS]
    if device.type == "cpu" and layers and full_width():
        for part in layers:
            part.forward = partial(_linear, part)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, features: Tensor) -> Tensor:
    """The forward pass of a linear layer by whichever kernel is faster for that many rows."""
    small = features.numel() * layer.out_features < LEAST_PRODUCTS
    if small or features.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(features, layer.weight, layer.bias)
    outputs: Tensor = OneDnnLinear.apply(features, layer.weight, layer.bias)
    return outputs
