"""``quantize_activation`` in plain PyTorch."""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ...ops.quantize import GROUP, Granularity, largest_value


def quantize(
    x: torch.Tensor,
    out_dtype: torch.dtype,
    granularity: Granularity,
    static_scale: torch.Tensor | None,
    static_zero: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantized values and scales of x [..., K] in any float dtype, as the op defines them."""
    limit = largest_value(out_dtype)
    width = x.shape[-1]
    groups = x.unsqueeze(-2)  # [..., G, size]
    if granularity == "group" and static_scale is None:
        groups = torch.nn.functional.pad(x, (0, -width % GROUP)).unflatten(-1, (-1, GROUP))
    if static_scale is None:
        largest = torch.linalg.vector_norm(groups, ord=torch.inf, dim=-1, dtype=torch.float32)
        # By a tensor: division by a number becomes multiplication by its rounded reciprocal on a GPU.
        scales = largest.div_(torch.full_like(largest, limit)).clamp_(min=1e-10)
    else:
        scales = static_scale.clone()
    quantized = (groups.float() / scales[..., None]).flatten(-2)[..., :width]
    if out_dtype == torch.int8:
        quantized = quantized.round_() if static_zero is None else quantized.round_().add_(static_zero)
        quantized = quantized.clamp_(-128, 127)
    else:
        quantized = quantized.clamp_(-limit, limit)
    return quantized.to(out_dtype).contiguous(), scales


@impl("quantize_activation", "torch", priority=10, flags=Flags(batch_invariant=True))
def quantize_activation_torch(
    x: torch.Tensor,
    out_dtype: torch.dtype = torch.float8_e4m3fn,
    granularity: Granularity = "token",
    static_scale: torch.Tensor | None = None,
    static_zero: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return quantize(x, out_dtype, granularity, static_scale, static_zero)
