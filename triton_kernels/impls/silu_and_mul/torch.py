"""``silu_and_mul`` in two torch calls."""

from __future__ import annotations

import torch

from ...impl import impl


@impl("silu_and_mul", "torch", priority=10)
def silu_and_mul_torch(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)
