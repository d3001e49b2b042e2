"""Rounding of float matrices to integers and float8, each value to the nearest one of its grid. Nothing here looks at activations.

All take float weights [..., N, K] and compute in float32. What they return multiplied out differs from the weights by at most
half a step of the grid (clipping aside). Rows, groups and blocks of zeros stay zeros.
"""

from __future__ import annotations

import torch

from triton_kernels.ops.gemm import FP8_BLOCK

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
INT8_MAX = 127


def int_groups(
    weight: torch.Tensor, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Groups of adjacent inputs: weight ~ (q - zero) * scale, with q from 0 to 2^bits - 1.

    Returns q uint8 [..., N, K]; scales [..., N, K/G] in scale_dtype (None: the weight's); zeros uint8 [..., N, K/G], None where
    symmetric: all are 2^(bits - 1). group_size -1 is all of K. The values are rounded with the scales as returned. Raises
    ValueError for a group size that does not divide K.
    """
    groups = weight.float().unflatten(-1, (-1, group_length(weight.shape[-1], group_size)))
    scale_dtype = scale_dtype or weight.dtype
    scales, zeros = int_grid(groups, bits, symmetric, scale_dtype)
    quantized = round_to_grid(groups, scales[..., None], zeros[..., None], bits).to(torch.uint8).flatten(-2)
    return quantized, scales.to(scale_dtype), None if symmetric else zeros.to(torch.uint8)


def int_grid(groups: torch.Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, zeros) [...] of float32 groups [..., G], both float32, the scales of values that ``dtype`` has.

    Symmetric grids are as wide as the largest magnitude on both sides of zero 2^(bits - 1), which clips it by half a step; others
    reach from the least value to the largest, with 0 between them.
    """
    levels, half = 2**bits - 1, 2 ** (bits - 1)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scales = ((high - low) / levels).to(dtype).float()
    scales = torch.where(scales == 0, 1.0, scales)
    zeros = torch.full_like(scales, half) if symmetric else (-low / scales).round().clamp(0, levels)
    return scales, zeros


def round_to_grid(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 quantized values from 0 to 2^bits - 1; scales and zeros as of ``int_grid``, of shapes that broadcast."""
    return ((values / scales).round() + zeros).clamp(0, 2**bits - 1)


def group_length(num_in: int, group_size: int) -> int:
    """The group size, or all inputs for -1. Raises ValueError where it does not divide them."""
    if group_size == -1:
        return num_in
    if group_size < 1 or num_in % group_size:
        fitting = ", ".join([*(str(size) for size in (128, 64, 32, 16) if num_in % size == 0), "-1 (all inputs)"])
        raise ValueError(f"group_size={group_size} does not divide the {num_in} inputs of a layer: take {fitting}")
    return group_size


def int8_channels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight ~ q * scale: q int8 [..., N, K] from -127 to 127, scales float32 [..., N, 1]."""
    wide = weight.float()
    scales = _scale_to(INT8_MAX, wide.abs().amax(-1, keepdim=True))
    return (wide / scales).round().to(torch.int8), scales


def fp8_channels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight ~ q * scale: q float8_e4m3fn [..., N, K] up to +-448, scales float32 [..., N, 1]."""
    wide = weight.float()
    scales = _scale_to(FP8_MAX, wide.abs().amax(-1, keepdim=True))
    return (wide / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


def fp8_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of 128 x 128: q float8_e4m3fn [..., N, K] up to +-448, scales float32 [..., ceil(N/128), ceil(K/128)]. The last blocks
    are as large as what is left."""
    rows, columns = weight.shape[-2:]
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    blocks = padded.unflatten(-1, (-1, FP8_BLOCK)).unflatten(-3, (-1, FP8_BLOCK))  # [..., rows, 128, columns, 128]
    scales = _scale_to(FP8_MAX, blocks.abs().amax((-3, -1)))
    rounded = (blocks / scales[..., :, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return rounded.flatten(-4, -3).flatten(-2)[..., :rows, :columns].contiguous(), scales


def _scale_to(largest: float, magnitudes: torch.Tensor) -> torch.Tensor:
    """Never 0: where all values are 0, any other scale will do."""
    return (magnitudes / largest).clamp(min=torch.finfo(torch.float32).tiny)
