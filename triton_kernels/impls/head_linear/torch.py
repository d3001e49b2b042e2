"""``head_linear`` by a batched product: cuBLAS or hipBLASLt on a GPU, MKL or oneDNN on a CPU."""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("head_linear", "torch", priority=10, flags=Flags(cpu_graph=True))
def head_linear_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x.transpose(0, 1), weight.mT).transpose(0, 1)
