"""``linear`` by ``torch.nn.functional.linear``: cuBLAS or hipBLASLt on a GPU, MKL or oneDNN on a CPU."""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("linear", "torch", priority=10, flags=Flags(cpu_graph=True))
def linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias)
