"""Outputs of Triton kernels that can quantize what they make: numbers in the activations' dtype, or 8-bit quantized values and
scales.

A kernel holds a block of finished numbers in f32 registers and hands it to :func:`store_rows`, which rounds it once: to the
output's dtype, or to quantized values with a scale that the kernel has found over the row (MODE "token"), that was given
("static"), or that is found here for each 128 columns ("group").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...ops.quantize import GROUP
from ...spec import Spec
from .launch import cdiv, next_power_of_2
from .quantized_values import LIMITS, quantized_constants, scale_of, to_quantized


@triton.jit
def store_rows(
    values, scale, row, valid, start, width, out_ptr, scales_ptr, MODE: tl.constexpr, KIND: tl.constexpr, LIMIT: tl.constexpr
):
    """Writes f32 ``values`` [ROWS, BLOCK], columns ``start``.. of rows ``row`` int64 [ROWS], where ``valid`` bool [ROWS, 1].
    ``scale`` broadcasts to [ROWS, 1] (modes "token" and "static")."""
    ROWS: tl.constexpr = values.shape[0]
    BLOCK: tl.constexpr = values.shape[1]
    columns = start + tl.arange(0, BLOCK)[None, :]
    out_ptrs = out_ptr + (row * width)[:, None] + columns
    mask = valid & (columns < width)
    if MODE == "plain":
        tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), mask=mask)
    elif MODE == "group":
        grouped = tl.reshape(values, (ROWS, BLOCK // 128, 128))
        scales = scale_of(tl.max(tl.abs(grouped), axis=2), LIMIT)
        quantized = to_quantized(grouped, scales[:, :, None], KIND, LIMIT)
        tl.store(out_ptrs, tl.reshape(quantized, (ROWS, BLOCK)), mask=mask)
        group = start // 128 + tl.arange(0, BLOCK // 128)[None, :]
        num_groups = tl.cdiv(width, 128)
        tl.store(scales_ptr + (row * num_groups)[:, None] + group, scales, mask=valid & (group < num_groups))
    else:
        tl.store(out_ptrs, to_quantized(values, scale, KIND, LIMIT), mask=mask)


class New(NamedTuple):
    """A new output: what the op returns; the tensors that the kernel writes (``scales`` holds the static scale already); and its
    constants MODE, KIND and LIMIT."""

    result: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    out: torch.Tensor
    scales: torch.Tensor
    constants: dict[str, Any]


class Output:
    """What a layer's output is: made of the op's bound arguments out_dtype, granularity and static_scale."""

    def __init__(self, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.dtype: torch.dtype | None = params.get("out_dtype")
        self.static_scale = weights.get("static_scale")
        self.mode = "plain"
        if self.dtype is not None:
            self.mode = params.get("granularity", "token") if self.static_scale is None else "static"
        quantized = {"KIND": "", "LIMIT": 0.0} if self.dtype is None else quantized_constants(self.dtype)
        self.constants = {"MODE": self.mode, **quantized}

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        asked, granularity = spec.fact("out_dtype"), spec.fact("granularity", "token")
        reasons = []
        if asked is not None and asked not in LIMITS:
            reasons.append(f"makes quantized values of {', '.join(map(str, LIMITS))}, not {asked}")
        if granularity not in ("token", "group"):
            reasons.append(f"scales by token or by group, not by {granularity}")
        return reasons

    def block(self, wanted: int, width: int) -> int:
        """Columns of a block: as wanted, no more than the row needs, and whole groups."""
        return max(min(wanted, next_power_of_2(width)), GROUP if self.mode == "group" else 1)

    def new(self, x: torch.Tensor, shape: Sequence[int]) -> New:
        if self.dtype is None:
            out = x.new_empty(*shape)
            return New(out, out, out, self.constants)
        quantized = x.new_empty(*shape, dtype=self.dtype)
        if self.static_scale is not None:
            scales = self.static_scale.clone()
        else:
            per_row = cdiv(shape[-1], GROUP) if self.mode == "group" else 1
            scales = x.new_empty(*shape[:-1], per_row, dtype=torch.float32)
        return New((quantized, scales), quantized.view(torch.uint8), scales, self.constants)
