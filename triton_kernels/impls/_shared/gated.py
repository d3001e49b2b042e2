"""act(gate) * up, by Triton. The grid is tokens x column blocks; a program reads its block of both halves of a row, computes in
f32 registers and writes once, so that activation, product and quantization are one pass over memory. A scale per token needs
the largest magnitude of the whole row: there one program takes a row and keeps it in registers up to 16384 columns, while
longer rows are read and computed a second time. Made for the elementwise step between the two GEMMs of an MLP, which is
bound by memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...ops.quantize import OUTPUT_ARGS
from ...spec import Spec
from .launch import Launch, cdiv
from .output import Output, store_rows
from .quantized_values import scale_of

BLOCK, ROW_BLOCK = 1024, 16384


@triton.jit
def _activated(gate, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(u)) / 2 = sigmoid(2u); 2 sqrt(2 / pi) = 1.5957691...
        return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        return gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))


@triton.jit
def _gated(x_ptr, start, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """[1, BLOCK] f32 of one row; 0 beyond its end."""
    columns = start + tl.arange(0, BLOCK)[None, :]
    gate = tl.load(x_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + width + columns, mask=columns < width, other=0.0).to(tl.float32)
    return _activated(gate, ACTIVATION) * up


@triton.jit
def gated_kernel(
    x_ptr,
    out_ptr,
    scales_ptr,
    width,
    stride_x,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    MODE: tl.constexpr,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    x_ptr += tl.program_id(0).to(tl.int64) * stride_x
    start = tl.program_id(1) * BLOCK
    valid = row[:, None] >= 0
    values = _gated(x_ptr, start, width, ACTIVATION, BLOCK)
    scale = 1.0
    if MODE == "static":
        scale = tl.load(scales_ptr)
    if MODE == "token":
        largest = tl.abs(values)
        if not ONE_BLOCK:
            for more in range(BLOCK, width, BLOCK):
                largest = tl.maximum(largest, tl.abs(_gated(x_ptr, more, width, ACTIVATION, BLOCK)))
        scale = scale_of(tl.max(largest, axis=1), LIMIT)[:, None]
        tl.store(scales_ptr + row[:, None], scale)
    store_rows(values, scale, row, valid, start, width, out_ptr, scales_ptr, MODE, KIND, LIMIT)
    if MODE == "token" and not ONE_BLOCK:
        for more in range(BLOCK, width, BLOCK):
            values = _gated(x_ptr, more, width, ACTIVATION, BLOCK)
            store_rows(values, scale, row, valid, more, width, out_ptr, scales_ptr, MODE, KIND, LIMIT)


class Gated:
    """``block``: columns that a program holds at once; 0: 1024, and a row up to 16384 where a scale per token needs all of it."""

    takes = OUTPUT_ARGS

    def __init__(
        self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block: int, activation: str
    ) -> None:
        self.output = Output(weights, params)
        self.by_row = self.output.mode == "token"
        self.block = block or (ROW_BLOCK if self.by_row else BLOCK)
        # 16 numbers of a row per thread leave room for two programs; 1024 threads are 16 wavefronts, or 32 warps.
        most_warps = 16 if spec.arch.startswith("gfx") else 32
        self.launch = Launch(
            gated_kernel,
            ACTIVATION=activation,
            **self.output.constants,
            num_warps=max(4, min(most_warps, self.block // 512)) if self.by_row else 4,
            enable_fp_fusion=self.output.mode == "plain",
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return Output.unsupported(spec)

    def __call__(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        width = x.shape[-1] // 2
        new = self.output.new(x, (*x.shape[:-1], width))
        if new.out.numel():
            x = x if x.dim() == 2 else x.reshape(-1, 2 * width)  # of a single row it would change the stride
            x = x if x.stride(1) == 1 else x.contiguous()
            block = self.output.block(self.block, width)
            grid = (x.shape[0], 1 if self.by_row else cdiv(width, block))
            self.launch(grid, x, new.out, new.scales, width, x.stride(0), BLOCK=block, ONE_BLOCK=block >= width)
        return new.result
