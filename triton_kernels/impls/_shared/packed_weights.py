"""GEMMs of float activations with integer or fp8 weights that are stored in 16-bit words, and the layout of the words.

Layout. A word holds PARTS quantized values: four of 4 bits, or two of 8 bits, the first in the lowest bits. The quantized value at
part i of word j in column block b is that of column (b * PARTS + i) * 32 + j: a block of 32 words covers PARTS runs of 32 columns,
and the quantized values of one part of adjacent words are adjacent columns. So two words in one register give, by shift and mask,
the pair of 16-bit operands that a matrix instruction takes, with no shuffle. Tiles of 64 rows x 32 words (4 KiB) are contiguous in
memory, ordered by rows, then column blocks; rows and columns are filled up to whole tiles. Scales (and zeros) are stored
transposed, [groups, rows], so that those of one group are adjacent.

Algorithm. A program computes a BLOCK_N x BLOCK_M tile of out^T over its share of K; the weight rows are the M side of the
matrix instruction for any number of tokens, so that unpacked weights go from registers into it (they never return to shared
memory) and few tokens fill a narrow tile. The sum over one group is multiplied by the group's scale in f32: fewer
multiplications than scaling the weights. Grid: (tiles, ordered in groups of token tiles for the L2 cache) x (splits of K);
partial sums of splits are added in a fixed order by a second kernel. Made for weights that are read once per step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...devices import by_arch
from ...spec import Spec
from .gemm_options import Config
from .split_k import num_splits, sum_splits

PART = 32
TILE_ROWS = 64

# 1024 + q is 0x6400 | q in float16, 128 + q is 0x4300 | q in bfloat16: one
# logical operation makes two numbers, and one multiply-add by 1 takes off the base and the zero point ("fma" because sm_80 has no
# bfloat16 addition).
_UNPACK = """{{
.reg .b32 w, u, one;
mov.b32 w, $4;
mov.b32 one, {one};
lop3.b32 u, w, 0x000f000f, {base}, 0xea;
fma.rn.{kind} $0, u, one, $5;
shr.u32 w, w, 4;
lop3.b32 u, w, 0x000f000f, {base}, 0xea;
fma.rn.{kind} $1, u, one, $6;
shr.u32 w, w, 4;
lop3.b32 u, w, 0x000f000f, {base}, 0xea;
fma.rn.{kind} $2, u, one, $7;
shr.u32 w, w, 4;
lop3.b32 u, w, 0x000f000f, {base}, 0xea;
fma.rn.{kind} $3, u, one, $8;
}}"""
_UNPACK_FP16 = tl.constexpr(_UNPACK.format(kind="f16x2", base="0x64006400", one="0x3c003c00"))
_UNPACK_BF16 = tl.constexpr(_UNPACK.format(kind="bf16x2", base="0x43004300", one="0x3f803f80"))
_CONSTRAINTS = tl.constexpr("=&r,=&r,=&r,=&r,r,r,r,r,r")  # "&": results are written before all operands are read


@triton.jit
def _unpack_int4_fast(words, zeros, ROWS: tl.constexpr, dtype: tl.constexpr):
    """Four tiles q - zero in ``dtype``, for the four parts; ``zeros``: f32 [ROWS] for each."""
    base: tl.constexpr = 1024.0 if dtype == tl.float16 else 128.0
    z0 = tl.broadcast_to((-base - zeros[0]).to(dtype)[:, None], (ROWS, 32))
    z1 = tl.broadcast_to((-base - zeros[1]).to(dtype)[:, None], (ROWS, 32))
    z2 = tl.broadcast_to((-base - zeros[2]).to(dtype)[:, None], (ROWS, 32))
    z3 = tl.broadcast_to((-base - zeros[3]).to(dtype)[:, None], (ROWS, 32))
    if dtype == tl.float16:
        tiles = tl.inline_asm_elementwise(
            _UNPACK_FP16,
            _CONSTRAINTS,
            [words, z0, z1, z2, z3],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        tiles = tl.inline_asm_elementwise(
            _UNPACK_BF16,
            _CONSTRAINTS,
            [words, z0, z1, z2, z3],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    return tiles


@triton.jit
def _unpack(words, zero, part: tl.constexpr, KIND: tl.constexpr, dtype: tl.constexpr):
    """One part as a tile of ``dtype``: integer q - zero, or the value of the fp8 bits. Exact in every dtype."""
    if KIND == "int4":
        values = ((words >> (4 * part)) & 15).to(tl.float32) - zero[:, None]
    else:
        value_bits = (words.to(tl.int32) >> (8 * part)) & 255
        if KIND == "uint8":  # 2^23 + q, made by bits, without an instruction that converts
            values = (value_bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + zero[:, None])
        else:
            # The bits at the right place in a float32, whose exponent has another bias: a multiplication by a power of two.
            shift: tl.constexpr = 20 if KIND == "e4m3" else 21
            bias: tl.constexpr = 2.0**120 if KIND == "e4m3" else 2.0**112
            bits = ((value_bits & 127) << shift) | ((value_bits & 128) << 24)
            values = bits.to(tl.float32, bitcast=True) * bias
    return values.to(dtype)


@triton.jit
def _scale_and_zero(scales_ptr, zeros_ptr, group, num_groups, num_out, n, ZERO: tl.constexpr, HAS_ZEROS: tl.constexpr):
    """Scales, and zero points as f32, of one group for rows n; past the end both are 0."""
    # A bound, because Triton 3.9's interpreter refuses masks broadcast from a comparison of scalars.
    inside = n < tl.where(group < num_groups, num_out, 0)
    scale = tl.load(scales_ptr + group * num_out + n, mask=inside, other=0.0)
    if HAS_ZEROS:
        zero = tl.load(zeros_ptr + group * num_out + n, mask=inside, other=0).to(tl.float32)
    else:
        zero = tl.full(n.shape, ZERO, tl.float32)
    return scale, zero


@triton.jit
def packed_sums(
    x_ptrs,
    inside,
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
    KIND: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    GROUPS_PER_BLOCK: tl.constexpr,
    EVEN_K: tl.constexpr,
    FAST: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """[BLOCK_N, BLOCK_M]: sum over the groups in column blocks first_block .. last_block - 1 of scale[n, group] * (q - zero) .
    x. ``x_ptrs`` [BLOCK_M, 32] and ``word_ptrs`` [BLOCK_N, 32] point into the first block; ``inside`` bool [BLOCK_M, 1]: which
    rows of x to read, the others are 0 (None: all); n are the rows of the weights."""
    PARTS: tl.constexpr = 4 if KIND == "int4" else 2
    PARTS_PER_GROUP: tl.constexpr = PARTS // GROUPS_PER_BLOCK
    dtype: tl.constexpr = tl.float64 if INTERPRET else x_ptrs.dtype.element_ty
    acc_dtype: tl.constexpr = tl.float64 if INTERPRET else tl.float32
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=acc_dtype)
    # Scales of whole blocks are loaded one block ahead; they are too small to be copied asynchronously.
    scale, zero = _scale_and_zero(scales_ptr, zeros_ptr, first_block // blocks_per_group, num_groups, num_out, n, ZERO, HAS_ZEROS)
    for block in range(first_block, last_block):
        words = tl.load(word_ptrs)
        first_group = block * GROUPS_PER_BLOCK
        if GROUPS_PER_BLOCK == 1 and not WHOLE_ROWS:
            next_scale, next_zero = _scale_and_zero(
                scales_ptr, zeros_ptr, (block + 1) // blocks_per_group, num_groups, num_out, n, ZERO, HAS_ZEROS
            )
        if FAST:
            zeros = (zero, zero, zero, zero)
            if HAS_ZEROS and GROUPS_PER_BLOCK > 1:
                _, z0 = _scale_and_zero(scales_ptr, zeros_ptr, first_group, num_groups, num_out, n, ZERO, HAS_ZEROS)
                _, z1 = _scale_and_zero(scales_ptr, zeros_ptr, first_group + 1, num_groups, num_out, n, ZERO, HAS_ZEROS)
                zeros = (z0, z0, z1, z1)
                if GROUPS_PER_BLOCK == 4:
                    _, z2 = _scale_and_zero(scales_ptr, zeros_ptr, first_group + 2, num_groups, num_out, n, ZERO, HAS_ZEROS)
                    _, z3 = _scale_and_zero(scales_ptr, zeros_ptr, first_group + 3, num_groups, num_out, n, ZERO, HAS_ZEROS)
                    zeros = (z0, z1, z2, z3)
            tiles = _unpack_int4_fast(words, zeros, BLOCK_N, dtype)
        for part in tl.static_range(PARTS):
            if GROUPS_PER_BLOCK > 1 and part % PARTS_PER_GROUP == 0:
                group = first_group + part // PARTS_PER_GROUP
                scale, zero = _scale_and_zero(scales_ptr, zeros_ptr, group, num_groups, num_out, n, ZERO, HAS_ZEROS)
            if part % PARTS_PER_GROUP == 0 and not WHOLE_ROWS:
                part_sum = tl.zeros((BLOCK_N, BLOCK_M), dtype=acc_dtype)
            if EVEN_K and inside is None:
                x = tl.load(x_ptrs + part * 32)
            elif EVEN_K:
                x = tl.load(x_ptrs + part * 32, mask=inside, other=0.0)
            else:
                left = tl.arange(0, 32)[None, :] < num_in - (block * PARTS + part) * 32
                if inside is not None:
                    left = left & inside
                x = tl.load(x_ptrs + part * 32, mask=left, other=0.0)
            x = tl.trans(x.to(dtype))
            if FAST:
                weight = tiles[part]
            else:
                weight = _unpack(words, zero, part, KIND, dtype)
            if WHOLE_ROWS:
                acc = tl.dot(weight, x, acc, input_precision="ieee", out_dtype=acc_dtype)
            else:
                part_sum = tl.dot(weight, x, part_sum, input_precision="ieee", out_dtype=acc_dtype)
                if part % PARTS_PER_GROUP == PARTS_PER_GROUP - 1:
                    acc += part_sum * scale.to(acc_dtype)[:, None]
        if GROUPS_PER_BLOCK == 1 and not WHOLE_ROWS:
            scale, zero = next_scale, next_zero
        x_ptrs += PARTS * 32
        word_ptrs += 2048
    if WHOLE_ROWS:
        acc *= scale.to(acc_dtype)[:, None]
    return acc


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
    FAST: tl.constexpr,
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

    m, row, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, 32)
    n = first_n + row
    per_split = tl.cdiv(num_blocks, SPLIT_K)
    first_block = split * per_split
    last_block = tl.minimum(first_block + per_split, num_blocks)
    # Rows past the end: tokens read the last one again, weights have whole tiles (64 rows) but the second tile may be missing.
    m_read = tl.minimum(m, num_tokens - 1 - first_m)
    tile_row = tl.minimum(first_n // 64 + row // 64, tl.cdiv(num_out, 64) - 1)
    x_ptrs = x_ptr + first_m.to(tl.int64) * stride_x + first_block * (PARTS * 32) + m_read[:, None] * stride_x + j[None, :]
    word_ptrs = words_ptr + (tile_row.to(tl.int64) * num_blocks * 2048 + (row % 64) * 32)[:, None] + first_block * 2048 + j[None, :]

    acc = packed_sums(
        x_ptrs,
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
        FAST,
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


def pack_words(quantized: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 quantized values [N, K] of 4 or 8 bits -> int16 words [ceil(N/64), ceil(K/block), 64, 32], block = 32 * (16 / bits)
    columns."""
    parts = 16 // bits
    num_out, num_in = quantized.shape
    quantized = torch.nn.functional.pad(quantized, (0, -num_in % (PART * parts), 0, -num_out % TILE_ROWS))
    tiles = quantized.unflatten(0, (-1, TILE_ROWS)).unflatten(2, (-1, parts, PART)).permute(3, 0, 2, 1, 4)
    low, high = (tiles[0], tiles[1]) if bits == 8 else (tiles[0] | tiles[1] << 4, tiles[2] | tiles[3] << 4)
    return torch.stack((low, high), dim=-1).view(torch.int16).squeeze(-1)


def group_reasons(in_features: int, group_size: int, block: int) -> list[str]:
    """Why groups of this size do not fit blocks of ``block`` columns, if they do not."""
    if group_size == in_features or group_size % block == 0 or (group_size >= PART and block % group_size == 0):
        return []
    smaller = [size for size in (32, 64) if size < block]
    sizes = ", ".join([*map(str, smaller), f"multiples of {block}"])
    return [f"scales groups of {sizes}, or whole rows, not of {group_size}"]


def group_layout(in_features: int, num_groups: int, block: int) -> tuple[bool, int, int]:
    """(WHOLE_ROWS, GROUPS_PER_BLOCK, blocks_per_group) of :func:`packed_sums`."""
    group = in_features // num_groups
    whole_rows = num_groups == 1
    return whole_rows, 1 if whole_rows else max(1, block // group), triton.cdiv(group, block)


def launch_config(num_tokens: int, num_out: int, num_blocks: int, dtype: torch.dtype, arch: str) -> Config:
    """Configuration for ``num_tokens`` rows and weights of ``num_blocks`` column blocks: a function of host integers."""
    device = by_arch(arch)
    if dtype == torch.float32:
        return Config(16, 64, 4, 2, 1)
    small_shared = device.shared_bytes < 128 * 1024
    if num_tokens > 64:
        # One warp group: while one program unpacks and scales, another of the same multiprocessor multiplies.
        return Config(128, 64, 4, 2 if small_shared else 3, 1)
    block_m = 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64
    tiles = -(-num_out // 64) * -(-num_tokens // block_m)
    return Config(block_m, 64, 4, 2 if small_shared else 5, num_splits(tiles, num_blocks, 2 * device.num_sms))


class PackedGemm:
    """x [M, K] times packed weights -> [M, N].

    quantized values   uint8 [N, K]; kind "int4", "uint8", "e4m3" or "e5m2" says what they mean
    zero    the zero point of all quantized values where ``zeros`` (uint8 [N, K/G]) is None
    scales  [N, K/G]; perm int [K] or None: column j belongs to x[:, perm[j]]
    """

    def __init__(
        self,
        spec: Spec,
        quantized: torch.Tensor,
        kind: str,
        zero: int,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bias: torch.Tensor | None,
        perm: torch.Tensor | None = None,
    ) -> None:
        self.spec, self.kind, self.zero, self.bias = spec, kind, float(zero), bias
        self.num_out, self.num_in = quantized.shape
        bits = 4 if kind == "int4" else 8
        self.words = pack_words(quantized, bits)
        self.scales = scales.T.contiguous()
        self.zeros = None if zeros is None else zeros.T.contiguous()
        self.perm = None if perm is None else perm.long()
        self.num_blocks = self.words.shape[1]
        block = PART * 16 // bits
        self.whole_rows, self.groups_per_block, self.blocks_per_group = group_layout(self.num_in, scales.shape[1], block)
        self.even_k = self.num_in % block == 0
        self.fast = kind == "int4" and spec.dtype != torch.float32 and spec.arch.startswith("sm_") and not spec.interpret

    def config(self, num_tokens: int) -> Config:
        return launch_config(num_tokens, self.num_out, self.num_blocks, self.spec.dtype, self.spec.arch)

    def multiply(self, x: torch.Tensor, config: Config) -> torch.Tensor:
        num_tokens, num_out, split = x.shape[0], self.num_out, config.split_k
        out = x.new_empty(num_tokens, num_out)
        if out.numel() == 0:
            return out
        if self.perm is not None:
            x = x.index_select(1, self.perm)
        x = x if x.stride(1) == 1 else x.contiguous()
        target = out if split == 1 else x.new_empty(split, num_tokens, num_out, dtype=torch.float32)
        grid = (triton.cdiv(num_tokens, config.block_m) * triton.cdiv(num_out, config.block_n), split)
        packed_kernel[grid](
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
            KIND=self.kind,
            ZERO=self.zero,
            HAS_ZEROS=self.zeros is not None,
            HAS_BIAS=self.bias is not None and split == 1,
            WHOLE_ROWS=self.whole_rows,
            GROUPS_PER_BLOCK=self.groups_per_block,
            EVEN_K=self.even_k,
            FAST=self.fast,
            INTERPRET=self.spec.interpret,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            GROUP_M=8,
            SPLIT_K=split,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
        if split > 1:
            sum_splits(target, out, self.bias)
        return out
