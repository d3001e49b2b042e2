"""MXFP4 (OCP Microscaling Formats 1.0): groups of 32 values of 4 bits (e2m1) that share a power of two (e8m0)."""

from __future__ import annotations

import torch

MXFP4_GROUP = 32
MXFP4_NAN = 255
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127


def mxfp4_values(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """packed uint8 [..., K/2], the first of two values in the low half; scales uint8 [..., K/32], the exponent plus 127, or
    MXFP4_NAN -> float64 [..., K], exactly."""
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], dtype=torch.float64, device=packed.device)
    values = table[torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).long()].unflatten(-1, (-1, MXFP4_GROUP))
    exponents = scales.int() - _BIAS
    powers = torch.where(scales == MXFP4_NAN, torch.nan, torch.exp2(exponents.double()))
    return (values * powers[..., None]).flatten(-2)
