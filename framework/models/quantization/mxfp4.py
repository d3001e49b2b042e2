"""MXFP4 (OCP Microscaling Formats 1.0): groups of 32 values of 4 bits (e2m1) that share a power of two (e8m0)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..parts import Part, bias_name
from .scheme import LoadedPart, TensorSource
from .settings import Settings
from .unquantized import Unquantized, float_experts, gate_first

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


class Mxfp4Experts(Unquantized):
    """gpt-oss: of packed experts [E, R, K] ``_blocks`` uint8 [E, R, K/32, 16] and ``_scales`` uint8 [E, R, K/32]; everything else
    is floats. No kernel multiplies MXFP4: experts become floats of the model's dtype, exactly in bfloat16 and float32."""

    @staticmethod
    def read(settings: Settings) -> Mxfp4Experts:
        return Mxfp4Experts()

    def names(self, part: Part, source: TensorSource) -> Iterable[str]:
        if not part.num_experts:
            yield from part.float_names()
            return
        for name, *_ in part.tensors():
            if not part.is_packed or len(part.sources) != 1 or (part.columns or 0) % MXFP4_GROUP:
                raise ValueError(f"{name}: MXFP4 is known of experts in one tensor, of a multiple of {MXFP4_GROUP} inputs")
            yield from (f"{name}_blocks", f"{name}_scales", *([bias_name(name)] if part.bias else []))

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        note = f"MXFP4 weights were unpacked to {source.dtype}"
        return float_experts(_unpacked(w13, source), _unpacked(w2, source), note)


def _unpacked(part: Part, source: TensorSource) -> torch.Tensor:
    """[E, R, K], one expert at a time: on the way they are float64."""
    assert part.columns is not None
    ((name, *_),) = part.tensors()
    shape = (part.num_experts, sum(part.rows), part.columns // MXFP4_GROUP)
    blocks = source.stored(f"{name}_blocks", (*shape, MXFP4_GROUP // 2), torch.uint8)
    scales = source.stored(f"{name}_scales", shape, torch.uint8)
    if bool((scales == MXFP4_NAN).any()):
        raise ValueError(f"{name}_scales has values that are NaN: quantize the model again")
    weight = torch.empty(part.shape, dtype=source.dtype, device=source.device)
    for expert, packed, scale in zip(weight, blocks.flatten(-2), scales):
        expert.copy_(mxfp4_values(packed, scale))
    return gate_first(weight) if part.alternating else weight
