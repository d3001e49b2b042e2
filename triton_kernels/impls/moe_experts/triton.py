"""Experts as two grouped matrix products over the choices sorted by expert.

Algorithm: (1) choices are grouped by expert on the device; (2) a tile of BLOCK_M of one expert's tokens, read through their
indices, is multiplied with matching rows of gate and up, and leaves silu(gate) * up; (3) the second product multiplies by the
router's weight and writes each choice to its own row; (4) a token's rows are added in the order of its choices. Grid of the
products: (row tiles x column blocks), a bounded number of row tiles of which the unused return at once, ordered so that eight
row tiles share a column block of weights in L2. Registers hold the float32 accumulators, shared memory the pipelined tiles of
activations and weights. Tiles have the same shape whatever the number of tokens, so a token's result keeps its bits in any
batch; few rows per expert leave most of a tile idle, while the weights are still read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...ops.moe_align import Groups
from ...spec import Spec
from ..moe_align.triton import group_by_expert, tile_rows

GROUP_TILES = tl.constexpr(8)


@triton.jit
def _place(starts, tile_expert, num_tiles, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(expert or -1, its rows in sorted order, which of them are real, column block) of this program."""
    pid = tl.program_id(0)
    per_group = GROUP_TILES * tl.cdiv(COLUMNS, BLOCK_N)
    first = pid // per_group * GROUP_TILES
    size = tl.minimum(num_tiles - first, GROUP_TILES)
    tile = first + pid % per_group % size
    expert, rows, inside = tile_rows(starts, tile_expert, tile, BLOCK_M)
    return expert, rows, inside, pid % per_group // size


@triton.jit
def _load(pointers, inside, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile whose rows are real where ``inside`` [rows, 1] says so, and columns below K."""
    if K % BLOCK_K == 0:
        tile = tl.load(pointers, mask=inside, other=0.0)
    else:
        tile = tl.load(pointers, mask=inside & (k < K)[None, :], other=0.0)
    return tile


@triton.jit
def _multiply(rows, weights, acc, INTERPRET: tl.constexpr):
    """acc + rows . weights^T. The interpreter calculates with bfloat16's bit patterns, and rounds a row's products by its
    place in the tile; float64 hides both."""
    if INTERPRET:
        result = tl.dot(rows.to(tl.float64), tl.trans(weights).to(tl.float64), acc, out_dtype=tl.float64)
    else:
        result = tl.dot(rows, tl.trans(weights), acc, input_precision="ieee")
    return result


@triton.jit(do_not_specialize=["num_tiles"])
def gate_up_kernel(
    x, w13, hidden, pairs, starts, tile_expert, num_tiles, stride_xt, stride_we, stride_wn,
    TOP_K: tl.constexpr, K: tl.constexpr, INNER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """hidden[sorted row, n] = silu(x . gate_n) * (x . up_n)."""
    expert, rows, inside, column_block = _place(starts, tile_expert, num_tiles, INNER, BLOCK_M, BLOCK_N)
    if expert < 0:
        return
    tokens = tl.load(pairs + rows, mask=inside, other=0) // TOP_K
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    within = columns < INNER
    ks = tl.arange(0, BLOCK_K)
    x_rows = x + tokens.to(tl.int64)[:, None] * stride_xt
    gate_rows = w13 + expert.to(tl.int64) * stride_we + columns.to(tl.int64)[:, None] * stride_wn
    up_rows = gate_rows + INNER * stride_wn
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRET else tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRET else tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        k = start + ks
        x_tile = _load(x_rows + k[None, :], inside[:, None], k, K, BLOCK_K)
        gate_tile = _load(gate_rows + k[None, :], within[:, None], k, K, BLOCK_K)
        up_tile = _load(up_rows + k[None, :], within[:, None], k, K, BLOCK_K)
        gate = _multiply(x_tile, gate_tile, gate, INTERPRET)
        up = _multiply(x_tile, up_tile, up, INTERPRET)
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    pointers = hidden + rows.to(tl.int64)[:, None] * INNER + columns[None, :]
    tl.store(pointers, result.to(hidden.dtype.element_ty), mask=inside[:, None] & within[None, :])


@triton.jit(do_not_specialize=["num_tiles"])
def down_kernel(
    hidden, w2, weights, results, pairs, starts, tile_expert, num_tiles, stride_we, stride_wn,
    K: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """results[pair, n] = router weight of the pair * (hidden[sorted row] . w2_n)."""
    expert, rows, inside, column_block = _place(starts, tile_expert, num_tiles, COLUMNS, BLOCK_M, BLOCK_N)
    if expert < 0:
        return
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    within = columns < COLUMNS
    ks = tl.arange(0, BLOCK_K)
    hidden_rows = hidden + rows.to(tl.int64)[:, None] * K
    weight_rows = w2 + expert.to(tl.int64) * stride_we + columns.to(tl.int64)[:, None] * stride_wn
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRET else tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        k = start + ks
        hidden_tile = _load(hidden_rows + k[None, :], inside[:, None], k, K, BLOCK_K)
        weight_tile = _load(weight_rows + k[None, :], within[:, None], k, K, BLOCK_K)
        acc = _multiply(hidden_tile, weight_tile, acc, INTERPRET)
    pair = tl.load(pairs + rows, mask=inside, other=0)
    acc = acc.to(tl.float32) * tl.load(weights + pair, mask=inside, other=0.0)[:, None]
    pointers = results + pair.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    tl.store(pointers, acc.to(results.dtype.element_ty), mask=inside[:, None] & within[None, :])


@triton.jit
def combine_kernel(
    results, ids, out, expert_start, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """out[token] = sum of its results, in the order of its choices; those of other experts were never written."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP_K):
        local = tl.load(ids + token * TOP_K + choice) - expert_start
        # Scalar conditions become bounds, because Triton 3.9's interpreter refuses to broadcast them into masks.
        written = tl.where((local >= 0) & (local < NUM_EXPERTS), COLUMNS, 0)
        pointers = results + (token * TOP_K + choice) * COLUMNS + columns
        acc += tl.load(pointers, mask=columns < written, other=0.0).to(tl.float32)
    tl.store(out + token * COLUMNS + columns, acc.to(out.dtype.element_ty), mask=columns < COLUMNS)


def tile_config(spec: Spec) -> dict[str, int]:
    """Tiles of one warp group, several of which fit a multiprocessor."""
    if spec.dtype == torch.float32:
        return {"block_m": 16, "block_n": 32, "block_k": 32, "num_warps": 4, "num_stages": 2}
    if spec.arch.startswith("gfx"):
        return {"block_m": 64, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 2}
    return {"block_m": 64, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 3}


@impl(
    "moe_experts", "triton", priority=50, requires=("triton",), flags=Flags(batch_invariant=True),
    options={"block_m": 0, "block_n": 0, "block_k": 0, "num_warps": 0, "num_stages": 0},
    tune_space={"block_m": (16, 32, 64, 128), "block_n": (32, 64, 128), "block_k": (64, 128), "num_warps": (4, 8),
                "num_stages": (3, 4)},
)  # fmt: skip
class TritonExperts:
    """Options of 0 mean the choice of ``tile_config``; ``block_n`` counts rows of gate (and as many of up), the second
    product takes twice as many rows of w2."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        self.w13, self.w2 = weights["w13"], weights["w2"]
        self.expert_start = params.get("expert_start", 0)
        self.interpret = spec.interpret
        self.config = {name: options[name] or value for name, value in tile_config(spec).items()}

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        dtype = spec.fact("weight_dtype", spec.dtype)
        return [] if dtype == spec.dtype else [f"needs weights of the activations' dtype, not {dtype}"]

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        num_experts, hidden_size, inner = self.w2.shape
        num_tokens, top_k = ids.shape
        out = torch.empty(num_tokens, hidden_size, dtype=x.dtype, device=x.device)
        if not num_tokens:
            return out
        x, weights, ids = x if x.stride(1) == 1 else x.contiguous(), weights.contiguous(), ids.contiguous()
        groups = group_by_expert(ids, num_experts, self.expert_start, self.config["block_m"])
        hidden = torch.empty(ids.numel(), inner, dtype=x.dtype, device=x.device)
        results = torch.empty(ids.numel(), hidden_size, dtype=x.dtype, device=x.device)
        self._gate_up(x, hidden, groups, top_k)
        self._down(hidden, weights, results, groups)
        block = min(1024, triton.next_power_of_2(hidden_size))
        combine_kernel[(num_tokens, triton.cdiv(hidden_size, block))](
            results, ids, out, self.expert_start, NUM_EXPERTS=num_experts, TOP_K=top_k, COLUMNS=hidden_size, BLOCK=block,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        return out

    def _gate_up(self, x: torch.Tensor, hidden: torch.Tensor, groups: Groups, top_k: int) -> None:
        c, inner = self.config, hidden.shape[1]
        gate_up_kernel[(groups.num_tiles * triton.cdiv(inner, c["block_n"]),)](
            x, self.w13, hidden, groups.pairs, groups.starts, groups.tile_expert, groups.num_tiles, x.stride(0),
            self.w13.stride(0), self.w13.stride(1), TOP_K=top_k, K=x.shape[1], INNER=inner,
            BLOCK_M=c["block_m"], BLOCK_N=c["block_n"], BLOCK_K=c["block_k"],
            INTERPRET=self.interpret, num_warps=c["num_warps"], num_stages=c["num_stages"], enable_fp_fusion=True,
        )  # fmt: skip

    def _down(self, hidden: torch.Tensor, weights: torch.Tensor, results: torch.Tensor, groups: Groups) -> None:
        c, columns, block_n = self.config, results.shape[1], 2 * self.config["block_n"]
        down_kernel[(groups.num_tiles * triton.cdiv(columns, block_n),)](
            hidden, self.w2, weights, results, groups.pairs, groups.starts, groups.tile_expert, groups.num_tiles,
            self.w2.stride(0), self.w2.stride(1), K=hidden.shape[1], COLUMNS=columns,
            BLOCK_M=c["block_m"], BLOCK_N=block_n, BLOCK_K=c["block_k"],
            INTERPRET=self.interpret, num_warps=c["num_warps"], num_stages=c["num_stages"], enable_fp_fusion=True,
        )  # fmt: skip
