"""GEMMs of 8-bit activations with 8-bit weights (int8 or float8), both scaled.

Algorithm. A program computes a BLOCK_N x BLOCK_M tile of the output over its share of K. For few tokens the weight rows are the M
side of the matrix instruction (SWAP), so that one token fills a tile of 16; for many the tokens are, so that a thread holds sums of
few tokens and needs few of their scales. Both operands stay in shared memory, where the next iterations' tiles are in flight.
int8 sums are exact in int32; float8 sums are moved from the matrix unit, which adds them with fewer bits than f32 has, to f32
registers: after every 128 columns, the place where scales of blocks are applied, but for many tokens with other scales after 512,
so that the matrix unit is seldom waited for. Grid: (tiles, ordered in groups of token tiles for the L2 cache) x (splits of K);
partial sums of splits are added in a fixed order by a second kernel. Other scales, zero points and the bias come last. Made for
activations that are quantized values already: for few tokens, which the bytes of the weights bind, and for many, which the
matrix units do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...devices import by_arch
from ...spec import Spec
from ...tuning import NOT_TUNED, Tuned
from .gemm_options import Config, Gemm
from .launch import Launch, cdiv
from .split_k import num_splits, row_stride, scale_sums, sum_splits

BLOCK_K = 128


@triton.jit
def scaled_sums(
    x_ptrs,
    inside,
    weight_ptrs,
    x_scale_ptr,
    x_scale_at,
    scale_ptr,
    scale_at,
    first_block,
    last_block,
    num_in,
    BLOCKS: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    EVEN_K: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr = True,
    PROMOTE: tl.constexpr = 1,
):
    """[BLOCK_N, BLOCK_M] (without SWAP transposed): weight . x^T over the column blocks first_block .. last_block - 1. ``x_ptrs``
    [BLOCK_M, BLOCK_K] and ``weight_ptrs`` [BLOCK_N, BLOCK_K] point into the first of them; ``inside`` bool [BLOCK_M, 1]: which rows
    of x to read, the others are 0 (None: all). BLOCKS: scales of blocks, those of column block 0 at ``x_scale_ptr`` +
    ``x_scale_at`` [BLOCK_M] and ``scale_ptr`` + ``scale_at`` (ROW_SCALES, with SWAP: [BLOCK_N], else one for the tile); offsets
    take half the registers of pointers. PROMOTE: after how many blocks sums without scales of blocks move to f32 registers."""
    INTEGER: tl.constexpr = x_ptrs.dtype.element_ty == tl.int8
    sum_dtype: tl.constexpr = tl.int32 if INTEGER else tl.float64 if INTERPRET else tl.float32
    acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), dtype=sum_dtype)
    sums = acc
    for block in range(first_block, last_block):
        if EVEN_K:
            weight = tl.load(weight_ptrs)
            x = tl.load(x_ptrs) if inside is None else tl.load(x_ptrs, mask=inside, other=0.0)
        else:
            left = tl.arange(0, BLOCK_K)[None, :] < num_in - block * BLOCK_K
            weight = tl.load(weight_ptrs, mask=left, other=0.0)
            x = tl.load(x_ptrs, mask=left if inside is None else left & inside, other=0.0)
        if INTERPRET and not INTEGER:
            x, weight = x.to(tl.float32).to(tl.float64), weight.to(tl.float32).to(tl.float64)
        a, b = (weight, tl.trans(x)) if SWAP else (x, tl.trans(weight))
        if INTEGER:
            acc = tl.dot(a, b, acc, out_dtype=tl.int32)
        elif BLOCKS:
            sums = tl.dot(a, b, out_dtype=sum_dtype)
            x_scale, scale = tl.load(x_scale_ptr + block + x_scale_at), tl.load(scale_ptr + block + scale_at)
            if ROW_SCALES:
                acc += sums * (x_scale.to(sum_dtype)[None, :] * scale.to(sum_dtype)[:, None])
            else:
                acc += sums * tl.expand_dims((x_scale * scale).to(sum_dtype), 0 if SWAP else 1)
        else:
            sums = tl.dot(a, b, sums, out_dtype=sum_dtype)
            # Under a condition, so that the matrix unit need not be waited for in the other turns.
            if (block - first_block) % PROMOTE == PROMOTE - 1:
                acc += sums
                sums = tl.zeros_like(acc)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    if not INTEGER and not BLOCKS:
        acc += sums
    return acc


@triton.jit(do_not_specialize=["num_tokens", "stride_x_scale"])
def scaled_kernel(
    x_ptr,
    x_scale_ptr,
    x_zero_ptr,
    weight_ptr,
    scale_ptr,
    column_sum_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    num_out,
    num_in,
    stride_x,
    stride_weight,
    stride_x_scale,
    stride_scale,
    BLOCKS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SWAP: tl.constexpr,
):
    """BLOCKS: scales are those of blocks of 128, row strides given. Partial sums [SPLIT_K, num_tokens, num_out] are written
    as they are (int32, or f32 with the scales of blocks applied)."""
    INTEGER: tl.constexpr = x_ptr.dtype.element_ty == tl.int8
    tile, split = tl.program_id(0), tl.program_id(1)
    num_rows, num_columns = tl.cdiv(num_tokens, BLOCK_M), tl.cdiv(num_out, BLOCK_N)
    group_start = tile // (GROUP_M * num_columns) * GROUP_M
    group_size = tl.minimum(num_rows - group_start, GROUP_M)
    within = tile % (GROUP_M * num_columns)
    first_m = (group_start + within % group_size) * BLOCK_M
    first_n = (within // group_size) * BLOCK_N

    # Rows past the end read the last row again: what they compute is never stored, and loads need no row mask.
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_read, n_read = tl.minimum(m, num_tokens - 1 - first_m), tl.minimum(n, num_out - 1 - first_n)
    num_blocks = tl.cdiv(num_in, BLOCK_K)
    per_split = tl.cdiv(num_blocks, SPLIT_K)
    first_block = split * per_split
    last_block = tl.minimum(first_block + per_split, num_blocks)
    x_ptrs = x_ptr + first_m.to(tl.int64) * stride_x + first_block * BLOCK_K + m_read[:, None] * stride_x + k[None, :]
    weight_ptrs = (
        weight_ptr + first_n.to(tl.int64) * stride_weight + first_block * BLOCK_K + n_read[:, None] * stride_weight + k[None, :]
    )

    acc = scaled_sums(
        x_ptrs,
        None,
        weight_ptrs,
        x_scale_ptr,
        (first_m + m_read) * stride_x_scale,
        scale_ptr,
        first_n // 128 * stride_scale,
        first_block,
        last_block,
        num_in,
        BLOCKS,
        False,
        EVEN_K,
        INTERPRET,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SWAP,
        1 if SWAP else 4,
    )
    acc = acc if INTEGER else acc.to(tl.float32)
    if SWAP:
        acc = tl.trans(acc)

    token, column = first_m + m[:, None], first_n + n[None, :]
    inside = (token < num_tokens) & (column < num_out)
    out_ptrs = out_ptr + (split.to(tl.int64) * num_tokens + first_m) * num_out + m[:, None] * num_out + column
    if SPLIT_K > 1:
        tl.store(out_ptrs, acc, mask=inside)
    else:
        out = scale_sums(
            acc,
            x_scale_ptr,
            x_zero_ptr,
            scale_ptr,
            column_sum_ptr,
            bias_ptr,
            token,
            column,
            num_tokens,
            num_out,
            stride_x_scale,
            stride_scale,
            not BLOCKS,
            HAS_ZERO,
            HAS_BIAS,
        )
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=inside)


def launch_config(num_tokens: int, num_out: int, num_in: int, arch: str) -> Config:
    """Configuration for x [num_tokens, num_in] @ weight [num_out, num_in]^T: a function of host integers."""
    device = by_arch(arch)
    small_shared = device.shared_bytes < 128 * 1024
    if num_tokens > 64:
        # With eight warps AMD's compiler asks for the next tile behind the current product.
        return Config(128, 128, 4 if arch.startswith("gfx") else 8, 2 if small_shared else 4, 1)
    block_m = 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64
    tiles = -(-num_out // 64) * -(-num_tokens // block_m)
    return Config(block_m, 64, 4, 2 if small_shared else 5, num_splits(tiles, -(-num_in // BLOCK_K), 2 * device.num_sms))


class ScaledGemm(Gemm):
    """x [M, K] times weight [N, K]; scales [N | 1, 1], or [ceil(N/128), ceil(K/128)] with x_scale [M, ceil(K/128)]."""

    takes = ("partial",)

    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], tuned: Tuned = NOT_TUNED, **options: int
    ) -> None:
        super().__init__(tuned, options)
        weight = weights["weight"]
        self.spec = spec
        self.weight = weight if weight.stride(1) == 1 else weight.contiguous()
        self.scales, self.bias = weights["scales"].float().contiguous(), weights.get("bias")
        self.out_dtype = torch.float32 if params.get("partial") else params.get("out_dtype", torch.bfloat16)
        self.integer = weight.dtype == torch.int8
        self.blocks = self.scales.shape[1] > 1
        if self.blocks and self.fixed.get("block_n", 0) > 128:
            raise ValueError(f"scales blocks of 128 rows: block_n at most 128, not {self.fixed['block_n']}")
        self.column_sums = weight.sum(1, dtype=torch.int32) if self.integer else None
        self.kernel = Launch(
            scaled_kernel,
            BLOCKS=self.blocks,
            HAS_BIAS=self.bias is not None,
            EVEN_K=weight.shape[1] % BLOCK_K == 0,
            INTERPRET=spec.interpret,
            BLOCK_K=BLOCK_K,
            GROUP_M=8,
            enable_fp_fusion=not self.integer,
        )

    def config(self, num_tokens: int) -> Config:
        num_out, num_in = self.weight.shape
        return launch_config(num_tokens, num_out, num_in, self.spec.arch)

    def multiply(self, x: torch.Tensor, x_scale: torch.Tensor, x_zero: torch.Tensor | None, config: Config) -> torch.Tensor:
        (num_tokens, num_in), num_out, split = x.shape, self.weight.shape[0], config.split_k
        out = x.new_empty(num_tokens, num_out, dtype=self.out_dtype)
        if out.numel() == 0:
            return out
        x = x if x.stride(1) == 1 else x.contiguous()
        x_scale = x_scale.contiguous()
        x_zero = None if x_zero is None else x_zero.expand_as(x_scale).contiguous()
        sums = torch.int32 if self.integer else torch.float32
        target = out if split == 1 else x.new_empty(split, num_tokens, num_out, dtype=sums)
        self.kernel(
            (cdiv(num_tokens, config.block_m) * cdiv(num_out, config.block_n), split),
            x,
            x_scale,
            x_zero,
            self.weight,
            self.scales,
            self.column_sums,
            self.bias,
            target,
            num_tokens,
            num_out,
            num_in,
            x.stride(0),
            self.weight.stride(0),
            row_stride(x_scale),
            row_stride(self.scales),
            HAS_ZERO=x_zero is not None,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            SPLIT_K=split,
            SWAP=config.block_m < 64,  # a warp group takes 64 rows of the M side
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if split > 1 and self.blocks:
            sum_splits(target, out, self.bias)
        elif split > 1:
            sum_splits(target, out, self.bias, x_scale, x_zero, self.scales, self.column_sums)
        return out
