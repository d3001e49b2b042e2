"""Experts as two grouped GEMMs over the choices sorted by expert.

Algorithm: (1) choices are grouped by expert on the device; (2) a tile of one expert's tokens is multiplied with matching rows of
gate and up, and leaves silu(gate) * up; (3) the second GEMM multiplies by the router's weight and writes each choice to its
own row; (4) a token's rows are added in the order of its choices. Grid of the GEMMs: (row tiles x column blocks), a bounded
number of row tiles of which the unused return at once. The GEMMs are those of ``_float``, ``_int4`` and ``_float8``, which say
what lies in registers and shared memory. Tiles have the same shape whatever the number of tokens, so a token's result keeps its
bits in any batch. Made for many experts of which a token takes a few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from ..moe_align.triton import group_by_expert
from ._float import FloatGemm
from ._float8 import Float8Gemm
from ._int4 import Int4Gemm
from ._tiles import Routing, Tile


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


def tile_config(spec: Spec) -> Tile:
    """Tiles of one warp group, several of which fit a multiprocessor."""
    scheme, stages = spec.fact("scheme", "float"), 2 if spec.arch.startswith("gfx") else 3
    if scheme == "float":
        return Tile(16, 32, 32, 4, 2) if spec.dtype == torch.float32 else Tile(64, 64, 64, 4, stages)
    if scheme == "w4a16":
        return Tile(16, 64, 128, 4, 2) if spec.dtype == torch.float32 else Tile(32, 64, 128, 4, stages)
    # On sm_100 sums come from tensor memory all at once, which with scales of blocks takes more registers than there are.
    return Tile(32 if scheme == "fp8_block" and spec.arch == "sm_100" else 64, 64, 128, 4, stages)


@impl(
    "moe_experts",
    "triton",
    priority=50,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_m": 0, "block_n": 0, "block_k": 0, "num_warps": 0, "num_stages": 0},
    tune_space={
        "block_m": (16, 32, 64, 128),
        "block_n": (32, 64, 128),
        "block_k": (64, 128),
        "num_warps": (4, 8),
        "num_stages": (3, 4),
    },
)
class TritonExperts:
    """Options of 0 mean the choice of ``tile_config``; ``block_n`` counts rows of gate (and as many of up), the second GEMM
    takes twice as many rows of w2. ``block_k`` is for weights of the activations' dtype: quantized ones come in blocks of 128."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        tile = tile_config(spec)._replace(**{name: value for name, value in options.items() if value})
        gemm = _gemm(spec)
        self.gate_up, self.down = (
            gemm(spec, weights[name], weights.get(f"{name}_scale"), weights.get(f"{name}_zeros"), name == "w13", tile)
            for name in ("w13", "w2")
        )
        self.num_experts, self.block_m = weights["w2"].shape[0], tile.block_m
        self.expert_start = params.get("expert_start", 0)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        gemm, dtype = _gemm(spec), spec.fact("weight_dtype", spec.dtype)
        if gemm is FloatGemm:
            return [] if dtype == spec.dtype else [f"needs weights of the activations' dtype, not {dtype}"]
        return gemm.unsupported(spec)

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        num_tokens, hidden_size = x.shape
        out = torch.empty(num_tokens, hidden_size, dtype=x.dtype, device=x.device)
        if not num_tokens:
            return out
        x, weights, ids = x if x.stride(1) == 1 else x.contiguous(), weights.contiguous(), ids.contiguous()
        groups = group_by_expert(ids, self.num_experts, self.expert_start, self.block_m)
        routing = Routing(groups, weights, ids.shape[1])
        results = self.down(self.gate_up(x, routing), routing)
        block = min(1024, triton.next_power_of_2(hidden_size))
        combine_kernel[(num_tokens, triton.cdiv(hidden_size, block))](
            results,
            ids,
            out,
            self.expert_start,
            NUM_EXPERTS=self.num_experts,
            TOP_K=routing.top_k,
            COLUMNS=hidden_size,
            BLOCK=block,
            num_warps=4,
            enable_fp_fusion=True,
        )
        return out


def _gemm(spec: Spec) -> type[FloatGemm] | type[Int4Gemm] | type[Float8Gemm]:
    scheme = spec.fact("scheme", "float")
    return FloatGemm if scheme == "float" else Int4Gemm if scheme == "w4a16" else Float8Gemm
