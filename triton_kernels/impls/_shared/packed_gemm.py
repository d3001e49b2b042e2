"""GEMMs of float activations with packed weights (``packed_weights`` has the layout of the words and the loop over K).

A program computes a BLOCK_N x BLOCK_M tile of out^T over its share of K. Grid: (tiles, ordered in groups of token tiles for the L2
cache) x (splits of K); partial sums of splits are added in a fixed order by a second kernel. Made for weights that are read
once per step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from ...devices import by_arch
from ...spec import Spec
from ...tuning import Tuned
from . import gemm_options
from .gemm_options import Config, Gemm
from .launch import Launch, cdiv
from .packed_weights import PART, group_layout, pack_words, packed_sums
from .split_k import num_splits, sum_splits
from .unpack import unpacks_pairs

TUNE_SPACE: Mapping[str, tuple[int, ...]] = {**gemm_options.TUNE_SPACE, "block_n": (64, 128, 256)}


@triton.jit(do_not_specialize=["num_tokens"])
def packed_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    num_out,
    num_in,
    num_blocks,
    num_groups,
    blocks_per_group,
    stride_x,
    stride_out,
    KIND: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    GROUPS_PER_BLOCK: tl.constexpr,
    EVEN_K: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """out[m, n] = sum over groups of scale[n, group] * (x . (q - zero)), tokens m, weight rows n; with SPLIT_K > 1 the
    f32 partial sums [SPLIT_K, num_tokens, num_out]."""
    PARTS: tl.constexpr = 4 if KIND == "int4" else 2
    tile, split = tl.program_id(0), tl.program_id(1)
    num_rows, num_columns = tl.cdiv(num_tokens, BLOCK_M), tl.cdiv(num_out, BLOCK_N)
    group_start = tile // (GROUP_M * num_columns) * GROUP_M
    group_size = tl.minimum(num_rows - group_start, GROUP_M)
    within = tile % (GROUP_M * num_columns)
    first_m = (group_start + within % group_size) * BLOCK_M
    first_n = (within // group_size) * BLOCK_N

    m, row = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    n = first_n + row
    per_split = tl.cdiv(num_blocks, SPLIT_K)
    first_block = split * per_split
    last_block = tl.minimum(first_block + per_split, num_blocks)
    # Rows past the end: tokens read the last one again, weights have whole tiles (64 rows) but the second tile may be missing.
    m_read = tl.minimum(m, num_tokens - 1 - first_m)
    tile_row = tl.minimum(first_n // 64 + row // 64, tl.cdiv(num_out, 64) - 1)
    x_rows = x_ptr + first_m.to(tl.int64) * stride_x + first_block * (PARTS * 32) + m_read[:, None] * stride_x
    word_ptrs = words_ptr + (tile_row.to(tl.int64) * num_blocks * 2048 + (row % 64) * 32)[:, None] + first_block * 2048
    word_ptrs += tl.arange(0, 32)[None, :]

    acc = packed_sums(
        x_rows,
        None,
        word_ptrs,
        scales_ptr,
        zeros_ptr,
        n,
        first_block,
        last_block,
        num_out,
        num_in,
        num_groups,
        blocks_per_group,
        KIND,
        ZERO,
        HAS_ZEROS,
        WHOLE_ROWS,
        GROUPS_PER_BLOCK,
        EVEN_K,
        PAIRS,
        INTERPRET,
        BLOCK_M,
        BLOCK_N,
    )
    out = tl.trans(acc.to(tl.float32))

    if HAS_BIAS:
        out += tl.load(bias_ptr + n, mask=n < num_out, other=0.0).to(tl.float32)[None, :]
    out_ptr += (split.to(tl.int64) * num_tokens + first_m) * stride_out
    inside = (m[:, None] < num_tokens - first_m) & (n[None, :] < num_out)
    tl.store(out_ptr + m[:, None] * stride_out + n[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


def launch_config(num_tokens: int, num_out: int, num_blocks: int, groups_per_block: int, dtype: torch.dtype, arch: str) -> Config:
    """Configuration for ``num_tokens`` rows and weights of ``num_blocks`` column blocks: a function of host integers."""
    device = by_arch(arch)
    few, block_m = num_tokens <= 64, 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64
    programs_per_sm = 2
    if dtype == torch.float32:
        return Config(16, 64, 4, 2, 1)
    if device.shared_bytes < 128 * 1024:
        tile = Config(block_m if few else 128, 64, 4, 2, 1)
    elif block_m == 16 or (block_m == 32 and (arch != "sm_100" or groups_per_block > 1)):  # there 32 x 128 spills
        # Wide enough that unpacking, not the rest of a turn, is most of its instructions.
        tile = Config(block_m, 128, 4, 5, 1)
    else:
        # Each tile reads all tokens again: wider, or these are more bytes from the L2 cache than weights from memory. Every
        # group of a block has sums of its own, which must fit beside the others (registers, tensor memory).
        tile = Config(64, 128, 8, 4, 1) if groups_per_block > 1 else Config(64, 256, 8, 4, 1) if few else Config(128, 128, 8, 3, 1)
        programs_per_sm = 1
    if not few:
        return tile
    tiles = -(-num_out // tile.block_n) * -(-num_tokens // tile.block_m)
    return tile._replace(split_k=num_splits(tiles, num_blocks, programs_per_sm * device.num_sms))


class PackedGemm(Gemm):
    """x [M, K] times packed weights -> [M, N].

    weights  the op's scales [N, K/G], zeros (uint8 [N, K/G]), bias, and perm (int [K]: column j belongs to x[:, perm[j]]), but the
             scales all may be missing
    quantized  uint8 [N, K]; ``kind`` "int4", "uint8", "e4m3" or "e5m2" says what they mean
    zero     the zero point of all quantized values where there are no zeros
    partial  the result is not rounded: f32
    """

    takes = ("partial",)

    def __init__(
        self,
        spec: Spec,
        weights: Mapping[str, torch.Tensor | None],
        quantized: torch.Tensor,
        kind: str,
        zero: int,
        tuned: Tuned,
        options: Mapping[str, int],
        partial: bool,
    ) -> None:
        super().__init__(tuned, options)
        scales, zeros, perm = weights["scales"], weights.get("zeros"), weights.get("perm")
        assert scales is not None
        self.spec, self.bias, self.partial = spec, weights.get("bias"), partial
        self.num_out, self.num_in = quantized.shape
        bits = 4 if kind == "int4" else 8
        self.words = pack_words(quantized, bits)
        self.scales = scales.T.contiguous()
        self.zeros = None if zeros is None else zeros.T.contiguous()
        self.perm = None if perm is None else perm.long()
        self.num_blocks = self.words.shape[1]
        block = PART * 16 // bits
        whole_rows, self.groups_per_block, self.blocks_per_group = group_layout(self.num_in, scales.shape[1], block)
        self.kernel = Launch(
            packed_kernel,
            KIND=kind,
            ZERO=float(zero),
            HAS_ZEROS=zeros is not None,
            WHOLE_ROWS=whole_rows,
            GROUPS_PER_BLOCK=self.groups_per_block,
            EVEN_K=self.num_in % block == 0,
            PAIRS=unpacks_pairs(spec),
            INTERPRET=spec.interpret,
            GROUP_M=8,
            enable_fp_fusion=True,
        )

    def config(self, num_tokens: int) -> Config:
        return launch_config(num_tokens, self.num_out, self.num_blocks, self.groups_per_block, self.spec.dtype, self.spec.arch)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, self.launch(x.shape[0]))

    def multiply(self, x: torch.Tensor, config: Config) -> torch.Tensor:
        num_tokens, num_out, split = x.shape[0], self.num_out, config.split_k
        out = x.new_empty(num_tokens, num_out, dtype=torch.float32 if self.partial else x.dtype)
        if out.numel() == 0:
            return out
        if self.perm is not None:
            x = x.index_select(1, self.perm)
        x = x if x.stride(1) == 1 else x.contiguous()
        target = out if split == 1 else x.new_empty(split, num_tokens, num_out, dtype=torch.float32)
        self.kernel(
            (cdiv(num_tokens, config.block_m) * cdiv(num_out, config.block_n), split),
            x,
            self.words,
            self.scales,
            self.zeros,
            self.bias,
            target,
            num_tokens,
            num_out,
            self.num_in,
            self.num_blocks,
            self.scales.shape[0],
            self.blocks_per_group,
            x.stride(0),
            num_out,
            HAS_BIAS=self.bias is not None and split == 1,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            SPLIT_K=split,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if split > 1:
            sum_splits(target, out, self.bias)
        return out
