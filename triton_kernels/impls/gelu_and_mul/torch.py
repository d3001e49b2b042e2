"""``gelu_and_mul`` in two torch calls."""

from __future__ import annotations

import torch

from ...impl import impl


@impl("gelu_and_mul", "torch", priority=10)
def gelu_and_mul_torch(x: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate, approximate=approximate).mul_(up)
