"""``linear`` by ``torch.nn.functional.linear``: cuBLAS or hipBLASLt on a GPU, MKL or oneDNN on a CPU."""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("linear", "torch", priority=10, flags=Flags(cpu_graph=True))
def linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, partial: bool = False) -> torch.Tensor:
    return unrounded(x, weight) if partial else torch.nn.functional.linear(x, weight, bias)


def unrounded(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight^T in float32. On a CPU both are widened in each call, a GPU's library keeps its sums."""
    if x.device.type == "cpu" or weight.dtype == torch.float32:
        return torch.nn.functional.linear(x.float(), weight.float())
    return torch.mm(x, weight.T, out_dtype=torch.float32)
