"""Float weights that are quantized while they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..parts import Part
from . import rounding
from .canonical import channel_weights, integer_bytes, integer_weights, scaled_bytes, scaled_weights
from .experts import stack_experts
from .modules import stack
from .scheme import LoadedPart, Module, TensorSource
from .unquantized import Unquantized


@dataclass(frozen=True)
class Rounding:
    """round      a float matrix [N, K], and the dtype of results, to the part that stands for it
    num_bytes  of such a part
    experts    whether ``moe_experts`` multiplies such parts; else they become floats again
    """

    round: Callable[[torch.Tensor, torch.dtype], LoadedPart]
    num_bytes: Callable[[Module], float]
    experts: bool = True


@dataclass(frozen=True)
class OnLoad(Unquantized):
    """Linear layers and experts of the model's layers; what is no such part (``Part.quantizable``) stays floats. Shards are rounded
    each by itself, as they would be in a checkpoint."""

    rounding: Rounding

    def linear(self, part: Part, source: TensorSource) -> tuple[LoadedPart, ...]:
        if not part.quantizable:
            return super().linear(part, source)
        return stack(
            [self.rounding.round(shard, source.dtype) for shard in source.weight(part).split(part.rows)], source.bias(part)
        )

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        gate_up, down = (
            [[self.rounding.round(shard, source.dtype) for shard in expert.split(part.rows)] for expert in source.weight(part)]
            for part in (w13, w2)
        )
        return stack_experts(gate_up, down, source.dtype)

    def num_bytes(self, part: Part, dtype: torch.dtype) -> float:
        if not part.quantizable or part.columns is None or (part.num_experts and not self.rounding.experts):
            return super().num_bytes(part, dtype)
        modules = [Module(name, rows, part.columns) for name, rows in zip(part.sources, part.rows)]
        return max(part.num_experts, 1) * sum(map(self.rounding.num_bytes, modules))


def int4(group_size: int, symmetric: bool) -> Rounding:
    """To nearest, on grids that reach from the least to the largest weight of a group."""

    def to_int4(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
        return integer_weights(*rounding.int_groups(weight, 4, group_size, symmetric), bits=4)

    return Rounding(to_int4, lambda module: integer_bytes(module, group_size, symmetric, 4))


def int8_weight() -> Rounding:
    """A scale per output, for float activations."""

    def to_int8(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
        return channel_weights(*rounding.int8_channels(weight))

    return Rounding(to_int8, lambda module: scaled_bytes(module, blocks=False), experts=False)


def scaled(
    op: str, quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], *, blocks: bool = False, experts: bool = True
) -> Rounding:
    """By a function of ``rounding``, for ``op`` with activations that are quantized too. blocks: scales are those of blocks."""

    def to_scaled(weight: torch.Tensor, dtype: torch.dtype) -> LoadedPart:
        return scaled_weights(op, *quantize(weight), dtype, blocks=blocks)

    return Rounding(to_scaled, lambda module: scaled_bytes(module, blocks), experts)
