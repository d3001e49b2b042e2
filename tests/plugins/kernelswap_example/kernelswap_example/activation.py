"""``silu_and_mul`` in other words."""

import torch

from triton_kernels.impl import impl


@impl("silu_and_mul", "example", priority=1)
def silu_and_mul_example(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up
