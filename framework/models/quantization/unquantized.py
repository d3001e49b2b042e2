"""Weights as floats."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ..parts import Part
from .scheme import LoadedPart, TensorSource


class Unquantized:
    """The scheme of checkpoints without any."""

    def names(self, part: Part, source: TensorSource) -> Iterable[str]:
        return part.float_names()

    def linear(self, part: Part, source: TensorSource) -> tuple[LoadedPart, ...]:
        return (float_linear(source.weight(part), source.bias(part)),)

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        return float_experts(source.weight(w13), source.weight(w2))

    def num_bytes(self, part: Part, dtype: torch.dtype) -> float:
        return math.prod(part.shape) * dtype.itemsize


def float_linear(weight: torch.Tensor, bias: torch.Tensor | None, note: str = "") -> LoadedPart:
    """weight [out, in] and bias [out] of one dtype."""
    return LoadedPart("linear", {"weight": weight, "bias": bias}, note=note)


def float_experts(w13: torch.Tensor, w2: torch.Tensor, note: str = "") -> LoadedPart:
    """w13 [E, 2I, H] and w2 [E, H, I] of one dtype."""
    return LoadedPart("moe_experts", {"w13": w13, "w2": w2}, note=note)


def gate_first(rows: torch.Tensor) -> torch.Tensor:
    """[E, 2I, ...], of which gate and up have every second row, -> gate, then up."""
    return torch.cat((rows[:, ::2], rows[:, 1::2]), 1)
