"""Grouped GEMMs of float8 activations with float8 weights (``scaled_gemm`` has the loop over K).

Activations become quantized values by the kernels of ``quantize_activation``: tokens once, before they are gathered, and the hidden
state, which stays in f32 until then, so that its quantized values are those of the contract. A program multiplies rows of one
expert's weights - for the first GEMM 64 of gate above 64 of up - with a tile of its tokens; both operands stay in shared memory,
and the sums move from the matrix unit to f32 registers after every 128 columns, where scales of blocks are applied. Needs float8
matrix instructions of the contract's format.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...spec import Spec
from .._shared.launch import Launch, cdiv
from .._shared.scaled_gemm import BLOCK_K, scaled_sums
from ..quantize_activation.triton import TritonQuantize
from ._tiles import Routing, Tile, gathered_rows, place, store_sums, weight_rows


@triton.jit(do_not_specialize=["num_tiles"])
def scaled_grouped_kernel(
    x,
    x_scale,
    quantized,
    scales,
    out,
    weights,
    pairs,
    starts,
    tile_expert,
    num_tiles,
    num_in,
    num_blocks,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCKS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    expert, rows, inside, column_block = place(starts, tile_expert, num_tiles, COLUMNS, BLOCK_M, BLOCK_N)
    if expert < 0:
        return
    MATRICES: tl.constexpr = 2 if GATED else 1
    ROW_SCALES: tl.constexpr = GATED or BLOCK_N > 128
    source = gathered_rows(pairs, rows, inside, TOP_K, GATED)
    matrix, row = weight_rows(column_block, COLUMNS, BLOCK_N, GATED)
    k = tl.arange(0, BLOCK_K)
    expert = expert.to(tl.int64)  # apart, so that offsets within an expert are short
    quantized += expert * (MATRICES * COLUMNS) * num_in
    n = matrix * COLUMNS + row
    if BLOCKS:
        ROW_BLOCKS: tl.constexpr = (COLUMNS + 127) // 128
        scales += expert * (MATRICES * ROW_BLOCKS) * num_blocks
        scale_at = (matrix * ROW_BLOCKS + row // 128 if ROW_SCALES else column_block * BLOCK_N // 128) * num_blocks
        x_scale_at = source * num_blocks
    else:
        scales += expert * (MATRICES * COLUMNS)
        scale_at, x_scale_at = n, source
    acc = scaled_sums(
        x + source.to(tl.int64)[:, None] * num_in + k[None, :],
        inside[:, None],
        quantized + n[:, None] * num_in + k[None, :],
        x_scale,
        x_scale_at,
        scales,
        scale_at,
        0,
        num_blocks,
        num_in,
        BLOCKS,
        ROW_SCALES,
        EVEN_K,
        INTERPRET,
        BLOCK_M,
        MATRICES * BLOCK_N,
        BLOCK_K,
    ).to(tl.float32)
    if not BLOCKS:
        acc = acc * tl.load(x_scale + x_scale_at)[None, :] * tl.load(scales + scale_at)[:, None]
    store_sums(acc, out, weights, pairs, rows, inside, column_block, COLUMNS, GATED, BLOCK_M, BLOCK_N)


class Float8Gemm:
    """As ``FloatGemm``, of float8_e4m3fn [E, R, K] with scales of channels or blocks."""

    def __init__(
        self, spec: Spec, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, gated: bool, partial: bool
    ) -> None:
        self.spec, self.gated, self.out_dtype = spec, gated, torch.float32 if gated or partial else spec.dtype
        self.quantized, self.scales = weight.contiguous(), scales.float().contiguous()
        self.blocks = spec.fact("scheme") == "fp8_block"
        params = {"out_dtype": torch.float8_e4m3fn, "granularity": "group" if self.blocks else "token"}
        self.quantize = TritonQuantize.bind(spec, params=params)
        self.kernel = Launch(scaled_grouped_kernel, BLOCKS=self.blocks, BLOCK_K=BLOCK_K)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        if spec.fact("weight_dtype", torch.float8_e4m3fn) != torch.float8_e4m3fn:
            return [f"takes scaled weights of torch.float8_e4m3fn, not {spec.fact('weight_dtype')}"]
        if spec.arch.startswith("gfx"):
            return [f"float8 formats of {spec.arch} are not those of the contract"]
        if spec.arch.startswith("sm_") and int(spec.arch.removeprefix("sm_")) < 89:
            return [f"float8 weights need float8 matrix instructions (sm_89 and later), not {spec.arch}"]
        return []

    def __call__(self, x: torch.Tensor, routing: Routing, tile: Tile) -> torch.Tensor:
        columns, num_in = self.quantized.shape[1] // (1 + self.gated), x.shape[1]
        out = x.new_empty(routing.num_pairs, columns, dtype=self.out_dtype)
        quantized, x_scale = self.quantize(x)
        self.kernel(
            tile.grid(routing.groups, columns, self.gated),
            quantized,
            x_scale,
            self.quantized,
            self.scales,
            out,
            routing.weights,
            *routing.groups,
            routing.groups.num_tiles,
            num_in,
            cdiv(num_in, BLOCK_K),
            TOP_K=routing.top_k,
            COLUMNS=columns,
            EVEN_K=num_in % BLOCK_K == 0,
            **tile.constants(self.gated, self.spec.interpret),
        )
        return out
