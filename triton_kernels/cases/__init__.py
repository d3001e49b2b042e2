"""Concrete inputs of every op: small odd ones for tests, large ones (tag "bench") for benchmarks and rooflines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..op import PARTIAL, Case

SMALL, TILED, BENCH = frozenset({"odd"}), frozenset({"odd", "tiled"}), frozenset({"bench"})
_LARGE = 1 << 22  # elements


def randn(generator: torch.Generator, dtype: torch.dtype, device: torch.device, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, drawn in float32 and rounded once. Small tensors are the same on every device; large ones are drawn on the
    device itself, because a CPU would take longer than a benchmark."""
    if device.type != "cpu" and math.prod(shape) > _LARGE:
        seed = int(torch.randint(1 << 62, (1,), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=generator.device) * scale).to(dtype).to(device)


QUANTIZED_LIMITS = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 5e-3)
"""Limits where an op quantizes its own output. Numbers between the sum and the quantized values are f32 whatever the input's dtype;
one that lies within its last bit of a border may get the next quantized value (1/8 away in float8_e4m3fn). Rounding to bfloat16
before the quantized values is an error of 1e-2 and more in float8 (5e-3 in int8), and truncating them one of 4e-2."""


PARTIAL_LIMITS = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 1e-5)
"""Limits of unrounded results: rounding to float16 would be an error of 2e-4, to bfloat16 one of 2e-3."""


def unrounded(case: Case, relative: Mapping[torch.dtype, float] | None = PARTIAL_LIMITS) -> Case:
    """The same call for a rank's part of the result. ``relative`` None: the op's limits, where something is rounded on the way."""
    return replace(case, name=f"{case.name}_partial", make=lambda *given: {**case.make(*given), PARTIAL: True}, relative=relative)


def quantized_args(device: torch.device, quantized: torch.dtype | None, granularity: str, static_scale: float) -> dict[str, Any]:
    """The arguments by which an op quantizes its output; ``static_scale`` 0: none."""
    static = torch.full((1, 1), static_scale, device=device) if static_scale else None
    return {"out_dtype": quantized, "granularity": granularity, "static_scale": static}


def quantized_dims(width: int, granularity: str = "token", static_scale: float = 0.0, **_: Any) -> dict[str, float]:
    """What cost functions take for an output of quantized values."""
    per_row = 1 if granularity == "token" else -(-width // 128)
    return {"out_bytes": 1, "num_scales": 0 if static_scale else per_row}
