"""The loop over K of GEMMs of float activations with integer or fp8 weights that are stored in 16-bit words, and their layout.

Layout. A word holds PARTS quantized values: four of 4 bits, or two of 8 bits, the first in the lowest bits. The quantized value at
part i of word j in column block b is that of column (b * PARTS + i) * 32 + j: a block of 32 words covers PARTS runs of 32 columns,
and the quantized values of one part of adjacent words are adjacent columns. So two words in one register give, by shift and mask,
the pair of 16-bit operands that a matrix instruction takes, with no shuffle. Tiles of 64 rows x 32 words (4 KiB) are contiguous in
memory, ordered by rows, then column blocks; rows and columns are filled up to whole tiles. Scales (and zeros) are stored
transposed, [groups, rows], so that those of one group are adjacent.

Algorithm. A tile is BLOCK_N x BLOCK_M of out^T: the weight rows are the M side of the matrix instruction for any number of tokens,
so that unpacked weights go from registers into it (they never return to shared memory) and few tokens fill a narrow tile. The
parts of a block that share a group are one product, of up to 128 columns: its matrix instructions follow each other without a wait.
The sum over one group is multiplied by the group's scale in f32: fewer multiplications than scaling the weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .unpack import PART, unpack

TILE_ROWS = 64


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
    x_rows,
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
    PAIRS: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """[BLOCK_N, BLOCK_M]: sum over the groups in column blocks first_block .. last_block - 1 of scale[n, group] * (q - zero) .
    x. ``x_rows`` [BLOCK_M, 1] and ``word_ptrs`` [BLOCK_N, 32] point to the first block; ``inside`` bool [BLOCK_M, 1]: which
    rows of x to read, the others are 0 (None: all); n are the rows of the weights."""
    PARTS: tl.constexpr = 4 if KIND == "int4" else 2
    dtype: tl.constexpr = tl.float64 if INTERPRET else x_rows.dtype.element_ty
    acc_dtype: tl.constexpr = tl.float64 if INTERPRET else tl.float32
    # Products of f32 have no matrix instruction: their operands are registers, too many for wide ones.
    PRODUCT_PARTS: tl.constexpr = 1 if x_rows.dtype.element_ty == tl.float32 else PARTS // GROUPS_PER_BLOCK
    WIDTH: tl.constexpr = 32 * PRODUCT_PARTS
    k = tl.arange(0, WIDTH)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=acc_dtype)
    # Scales of whole blocks are loaded one block ahead; they are too small to be copied asynchronously.
    scale, zero = _scale_and_zero(scales_ptr, zeros_ptr, first_block // blocks_per_group, num_groups, num_out, n, ZERO, HAS_ZEROS)
    for block in range(first_block, last_block):
        words = tl.load(word_ptrs)
        if GROUPS_PER_BLOCK == 1 and not WHOLE_ROWS:
            next_scale, next_zero = _scale_and_zero(
                scales_ptr, zeros_ptr, (block + 1) // blocks_per_group, num_groups, num_out, n, ZERO, HAS_ZEROS
            )
        for part in tl.static_range(0, PARTS, PRODUCT_PARTS):
            if GROUPS_PER_BLOCK > 1 and part * GROUPS_PER_BLOCK % PARTS == 0:  # the first of its group
                group = block * GROUPS_PER_BLOCK + part * GROUPS_PER_BLOCK // PARTS
                scale, zero = _scale_and_zero(scales_ptr, zeros_ptr, group, num_groups, num_out, n, ZERO, HAS_ZEROS)
            x_ptrs = x_rows + (part * 32 + k)
            if EVEN_K and inside is None:
                x = tl.load(x_ptrs)
            elif EVEN_K:
                x = tl.load(x_ptrs, mask=inside, other=0.0)
            else:
                left = k < num_in - (block * PARTS + part) * 32
                x = tl.load(x_ptrs, mask=left if inside is None else left & inside, other=0.0)
            x = tl.trans(x.to(dtype))
            weight = unpack(words, zero, part, PRODUCT_PARTS, KIND, PAIRS, dtype)
            if WHOLE_ROWS:
                acc = tl.dot(weight, x, acc, input_precision="ieee", out_dtype=acc_dtype)
            else:
                if part * GROUPS_PER_BLOCK % PARTS == 0:
                    group_sum = tl.zeros((BLOCK_N, BLOCK_M), dtype=acc_dtype)
                group_sum = tl.dot(weight, x, group_sum, input_precision="ieee", out_dtype=acc_dtype)
                if (part + PRODUCT_PARTS) * GROUPS_PER_BLOCK % PARTS == 0:
                    acc += group_sum * scale.to(acc_dtype)[:, None]
        if GROUPS_PER_BLOCK == 1 and not WHOLE_ROWS:
            scale, zero = next_scale, next_zero
        x_rows += PARTS * 32
        word_ptrs += 2048
    if WHOLE_ROWS:
        acc *= scale.to(acc_dtype)[:, None]
    return acc


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
