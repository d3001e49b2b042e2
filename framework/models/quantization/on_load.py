"""Float weights that are quantized while they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..parts import Part
from . import rounding
from .canonical import channel_weights, integer_weights, scaled_weights
from .experts import stack_experts
from .modules import stack
from .scheme import LoadedPart, TensorSource
from .unquantized import Unquantized

Round = Callable[[torch.Tensor, torch.dtype], LoadedPart]
"""A float matrix [N, K], and the dtype of results, to the part that stands for it."""


@dataclass(frozen=True)
class OnLoad(Unquantized):
    """Linear layers and experts of the model's layers; what is no such part (``Part.quantizable``) stays floats. Shards are rounded
    each by itself, as they would be in a checkpoint."""

    round: Round

    def linear(self, part: Part, source: TensorSource) -> tuple[LoadedPart, ...]:
        if not part.quantizable:
            return super().linear(part, source)
        return stack([self.round(shard, source.dtype) for shard in source.weight(part).split(part.rows)], source.bias(part))

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        gate_up, down = (
            [[self.round(shard, source.dtype) for shard in expert.split(part.rows)] for expert in source.weight(part)]
            for part in (w13, w2)
        )
        return stack_experts(gate_up, down, source.dtype)


def int4(group_size: int, symmetric: bool) -> Round:
    def to_int4(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
        return integer_weights(*rounding.int_groups(weight, 4, group_size, symmetric), bits=4)

    return to_int4


def int8(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
    return scaled_weights("gemm_int8", *rounding.int8_channels(weight), dtype)


def int8_weight(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
    return channel_weights(*rounding.int8_channels(weight))


def fp8(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
    return scaled_weights("gemm_fp8", *rounding.fp8_channels(weight), dtype)


def fp8_block(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
    return scaled_weights("gemm_fp8", *rounding.fp8_blocks(weight), dtype, blocks=True)
