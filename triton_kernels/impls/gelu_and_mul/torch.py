"""``gelu_and_mul`` in two torch calls, and the quantized values of its result in float32 if any."""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ...ops.quantize import Granularity
from ..quantize_activation.torch import quantize


@impl("gelu_and_mul", "torch", priority=10, flags=Flags(cpu_graph=True))
def gelu_and_mul_torch(
    x: torch.Tensor,
    approximate: str = "tanh",
    out_dtype: torch.dtype | None = None,
    granularity: Granularity = "token",
    static_scale: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    gate, up = (x if out_dtype is None else x.float()).chunk(2, dim=-1)
    gate = gate.contiguous()  # or a single row, which is, would take another path with another last bit
    out = torch.nn.functional.gelu(gate, approximate=approximate).mul_(up)
    return out if out_dtype is None else quantize(out, out_dtype, granularity, static_scale)
