"""Tiled GEMM. One program computes a BLOCK_M x BLOCK_N tile of out = x @ weight^T over its share of K, with
the accumulator in f32 registers and the x and weight tiles of the next iterations in flight in shared memory. For few
tokens the weight rows are the M side of the matrix instruction (64 rows, which reaches warp-group GEMMs on sm_90
from one token up), and when the tiles cannot fill the device, K is split over programs whose f32 partial sums a
second kernel adds in a fixed order. For many tokens tiles are ordered in groups of rows, so that neighbouring
programs share weight tiles in the L2 cache. Made for weights that are read once per step (few tokens) and for
GEMMs bound by the matrix units (many tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...devices import by_arch
from ...impl import Flags, impl
from ...spec import Spec
from ...tuning import NOT_TUNED, Tuned
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["num_tokens"])
def _matmul_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    num_out,
    num_in,
    stride_x,
    stride_weight,
    stride_out,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    num_rows, num_columns = tl.cdiv(num_tokens, BLOCK_M), tl.cdiv(num_out, BLOCK_N)
    group_start = tile // (GROUP_M * num_columns) * GROUP_M
    group_size = tl.minimum(num_rows - group_start, GROUP_M)
    within = tile % (GROUP_M * num_columns)
    first_m = (group_start + within % group_size) * BLOCK_M
    first_n = (within // group_size) * BLOCK_N

    # Rows past the end read the last row again: what they compute is never stored, and loads need no row mask. Tile
    # origins are 64-bit, offsets inside a tile 32-bit.
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_read, n_read = tl.minimum(m, num_tokens - 1 - first_m), tl.minimum(n, num_out - 1 - first_n)
    blocks_per_split = tl.cdiv(tl.cdiv(num_in, BLOCK_K), SPLIT_K)
    first_block = split * blocks_per_split
    last_block = tl.minimum(first_block + blocks_per_split, tl.cdiv(num_in, BLOCK_K))
    x_ptrs = x_ptr + first_m.to(tl.int64) * stride_x + first_block * BLOCK_K + m_read[:, None] * stride_x + k[None, :]
    weight_ptrs = (
        weight_ptr + first_n.to(tl.int64) * stride_weight + first_block * BLOCK_K + n_read[:, None] * stride_weight + k[None, :]
    )

    # The interpreter multiplies bf16 bit patterns, and its GEMMs round by a row's place in the tile: wider numbers there.
    acc_dtype: tl.constexpr = tl.float64 if INTERPRET else tl.float32
    acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), dtype=acc_dtype)
    for block in range(first_block, last_block):
        if EVEN_K:
            x, weight = tl.load(x_ptrs), tl.load(weight_ptrs)
        else:
            left = k[None, :] < num_in - block * BLOCK_K
            x, weight = tl.load(x_ptrs, mask=left, other=0.0), tl.load(weight_ptrs, mask=left, other=0.0)
        if INTERPRET:
            x, weight = x.to(tl.float64), weight.to(tl.float64)
        if SWAP:
            acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee", out_dtype=acc_dtype)
        else:
            acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee", out_dtype=acc_dtype)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    acc = acc.to(tl.float32)
    if SWAP:
        acc = tl.trans(acc)

    inside = (m[:, None] < num_tokens - first_m) & (n[None, :] < num_out - first_n)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + first_n + n, mask=n < num_out - first_n, other=0.0).to(tl.float32)[None, :]
    out_ptr += (split.to(tl.int64) * num_tokens + first_m) * stride_out + first_n
    out_ptrs = out_ptr + m[:, None] * stride_out + n[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_splits_kernel(
    partial_ptr, bias_ptr, out_ptr, num_tokens, num_out, SPLIT_K: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    token, columns = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_out
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLIT_K):
        row = (split * num_tokens + token).to(tl.int64)
        total += tl.load(partial_ptr + row * num_out + columns, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + token.to(tl.int64) * num_out + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


class Config(NamedTuple):
    """Launch configuration of one GEMM."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    swap: bool
    split_k: int


GROUP_M = 8
REDUCE_BLOCK = 1024
MAX_SPLIT_K = 16
MIN_BLOCKS_PER_SPLIT = 4


def launch_config(num_tokens: int, num_out: int, num_in: int, dtype: torch.dtype, arch: str, aligned: bool) -> Config:
    """Configuration for x [num_tokens, num_in] @ weight [num_out, num_in]^T: a pure function of host integers.
    ``aligned``: rows start at multiples of 16 elements, so that loads can be wide."""
    device = by_arch(arch)
    large_shared = device.shared_bytes >= 128 * 1024
    if dtype == torch.float32 or not aligned:
        # Exact f32 GEMMs use no matrix instruction, unaligned rows are loaded element by element: both need registers.
        tile = Config(16 if num_tokens <= 16 else 64, 64, 32, 4, 2, False, 1)
    elif num_tokens <= 32:
        tile = Config(16 if num_tokens <= 16 else 32, 64, 128, 4, 4 if large_shared else 2, True, 1)
    elif num_tokens <= 64:
        tile = Config(64, 64, 64 if arch == "sm_80" else 128, 4, 3 if large_shared else 2, False, 1)
    elif num_tokens <= 256 or not large_shared:
        tile = Config(128, 128, 64, 8, 4 if large_shared else 2, False, 1)
    else:
        tile = Config(128, 256, 64, 8, 3, False, 1) if arch != "sm_80" else Config(128, 128, 32, 4, 4, False, 1)
    if num_tokens > 64:
        return tile
    # Few tokens read every weight once: split until every multiprocessor has a program, but leave none a short loop.
    programs = -(-num_tokens // tile.block_m) * -(-num_out // tile.block_n)
    blocks = -(-num_in // tile.block_k)
    split = 1
    while split < MAX_SPLIT_K and programs * split < device.num_sms and blocks // (2 * split) >= MIN_BLOCKS_PER_SPLIT:
        split *= 2
    return tile._replace(split_k=split)


class _Linear:
    takes = ("partial",)

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        weight = weights["weight"]
        self.weight = weight if weight.stride(1) == 1 else weight.contiguous()
        self.bias = weights.get("bias")
        self.spec, self.partial = spec, params.get("partial", False)
        self.kernel = Launch(_matmul_kernel, GROUP_M=GROUP_M, INTERPRET=spec.interpret, enable_fp_fusion=True)
        self.sum_splits = Launch(_sum_splits_kernel, HAS_BIAS=self.bias is not None, num_warps=4, enable_fp_fusion=True)
        self.aligned = weight.shape[1] % 16 == 0 and self.weight.stride(0) % 16 == 0

    def config(self, num_tokens: int) -> Config:
        num_out, num_in = self.weight.shape
        return launch_config(num_tokens, num_out, num_in, self.weight.dtype, self.spec.arch, self.aligned)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        kind = spec.fact("weight_dtype", spec.dtype)
        if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return [f"multiplies float32, float16 and bfloat16, not {spec.dtype}"]
        if kind != spec.dtype:
            return [f"needs weights in the dtype of the activations ({spec.dtype}), not {kind}"]
        return []

    def multiply(self, x: torch.Tensor, config: Config) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        (num_tokens, num_in), num_out = x.shape, weight.shape[0]
        x = x if x.stride(1) == 1 else x.contiguous()
        out = x.new_empty(num_tokens, num_out, dtype=torch.float32 if self.partial else x.dtype)
        if out.numel() == 0:
            return out
        split = config.split_k
        target = out if split == 1 else x.new_empty(split, num_tokens, num_out, dtype=torch.float32)
        self.kernel(
            (cdiv(num_tokens, config.block_m) * cdiv(num_out, config.block_n), split),
            x,
            weight,
            bias,
            target,
            num_tokens,
            num_out,
            num_in,
            x.stride(0),
            weight.stride(0),
            num_out,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            SPLIT_K=split,
            SWAP=config.swap,
            EVEN_K=num_in % config.block_k == 0,
            HAS_BIAS=bias is not None and split == 1,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if split > 1:
            block = min(REDUCE_BLOCK, next_power_of_2(num_out))
            grid = (num_tokens, cdiv(num_out, block))
            self.sum_splits(grid, target, bias, out, num_tokens, num_out, SPLIT_K=split, BLOCK=block)
        return out


@impl(
    "linear",
    "triton",
    priority=8,  # below PyTorch (cuBLAS) until measured against it
    requires=("triton",),
    flags=Flags(batch_invariant=False),
    options={"block_m": 0, "block_n": 0, "block_k": 0, "num_warps": 0, "num_stages": 0, "split_k": 0},
    tune_space={
        "block_m": (16, 32, 64, 128),
        "block_n": (64, 128, 256),
        "block_k": (64, 128),
        "num_warps": (4, 8),
        "num_stages": (3, 4, 5),
        "split_k": (1, 2, 4, 8),
    },
)
class TritonLinear(_Linear):
    """Options set to 0 follow the tuned tables where they know a shape like this, and :func:`launch_config` elsewhere."""

    tuned_by_tokens = True

    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], tuned: Tuned = NOT_TUNED, **options: int
    ) -> None:
        super().__init__(spec, weights, params)
        self.tuned = tuned
        self.fixed = {name: value for name, value in options.items() if value}

    @staticmethod
    def tune_filter(options: Mapping[str, int], num_tokens: int) -> bool:
        """Whether options can be any good: no block of tokens far beyond the tokens, K split for few tokens only."""
        return options["block_m"] < 2 * max(num_tokens, 16) and (options["split_k"] == 1 or num_tokens <= 64)

    def launch(self, num_tokens: int) -> Config:
        """The configuration for so many tokens, tuned and chosen options included."""
        return self.config(num_tokens)._replace(**{**self.tuned.at(num_tokens), **self.fixed})

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, self.launch(x.shape[0]))


@impl("linear", "triton_invariant", priority=5, requires=("triton",), flags=Flags(batch_invariant=True))
class InvariantLinear(_Linear):
    """The same kernel with one tile shape and one order of K for any number of tokens."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        super().__init__(spec, weights, params)
        self.only_config = self.config(64)._replace(split_k=1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, self.only_config)
