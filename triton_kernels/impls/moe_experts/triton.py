"""Experts as two grouped GEMMs over the choices sorted by expert.

Algorithm: (1) choices are grouped by expert on the device; (2) a tile of one expert's tokens is multiplied with matching rows of
gate and up, and leaves silu(gate) * up; (3) the second GEMM multiplies by the router's weight and writes each choice to its
own row; (4) a token's rows are added in the order of its choices. Grid of the GEMMs: (row tiles x column blocks), a bounded
number of row tiles of which the unused return at once. The GEMMs are those of ``_float``, ``_int4`` and ``_float8``, which say
what lies in registers and shared memory; ``_tile_config`` says how large a tile is for how many tokens. Made for many experts of
which a token takes a few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from ...tuning import NOT_TUNED, Tuned
from .._shared.launch import Launch, cdiv, next_power_of_2
from ..moe_align.triton import group_by_expert
from ._float import FloatGemm
from ._float8 import Float8Gemm
from ._int4 import Int4Gemm
from ._tile_config import tile_config
from ._tiles import Routing, Tile, Variant


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


class _Experts:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        gemm, biases = _gemm(spec), [weights.get("w13_bias"), weights.get("w2_bias")]
        variant = Variant(**{name: params[name] for name in Variant._fields if name in params})
        more = [{"bias": bias, "variant": variant} if gemm is FloatGemm else {} for bias in biases]
        self.gate_up, self.down = (
            gemm(spec, weights[name], weights.get(f"{name}_scale"), weights.get(f"{name}_zeros"), name == "w13", **own)
            for name, own in zip(("w13", "w2"), more)
        )
        self.spec, self.num_experts, self.columns = spec, weights["w13"].shape[0], weights["w13"].shape[1] // 2
        self.expert_start = params.get("expert_start", 0)
        self.combine = Launch(combine_kernel, NUM_EXPERTS=self.num_experts, num_warps=4, enable_fp_fusion=True)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        gemm, dtype = _gemm(spec), spec.fact("weight_dtype", spec.dtype)
        if gemm is FloatGemm:
            return [] if dtype == spec.dtype else [f"needs weights of the activations' dtype, not {dtype}"]
        given = spec.fact("given", "")
        return [*gemm.unsupported(spec), *([f"takes {given} with float weights only"] if given else [])]

    def config(self, num_pairs: int) -> Tile:
        return tile_config(self.spec, num_pairs, self.num_experts, self.columns)

    def multiply(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, tile: Tile) -> torch.Tensor:
        num_tokens, hidden_size = x.shape
        out = torch.empty(num_tokens, hidden_size, dtype=x.dtype, device=x.device)
        if not num_tokens:
            return out
        x, weights, ids = x if x.stride(1) == 1 else x.contiguous(), weights.contiguous(), ids.contiguous()
        groups = group_by_expert(ids, self.num_experts, self.expert_start, tile.block_m)
        routing = Routing(groups, weights, ids.shape[1])
        results = self.down(self.gate_up(x, routing, tile), routing, tile)
        block = min(1024, next_power_of_2(hidden_size))
        grid = (num_tokens, cdiv(hidden_size, block))
        self.combine(grid, results, ids, out, self.expert_start, TOP_K=routing.top_k, COLUMNS=hidden_size, BLOCK=block)
        return out


@impl(
    "moe_experts",
    "triton",
    priority=50,
    requires=("triton",),
    options={"block_m": 0, "block_n": 0, "block_k": 0, "num_warps": 0, "num_stages": 0},
    tune_space={
        "block_m": (16, 32, 64, 128),
        "block_n": (32, 64, 128),
        "block_k": (64, 128),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
    },
)
class TritonExperts(_Experts):
    """Options set to 0 follow the tuned tables where they know a shape like this, and :func:`tile_config` elsewhere. ``block_n``
    counts rows of gate (and as many of up), the second GEMM takes twice as many rows of w2. ``block_k`` is for weights of the
    activations' dtype: quantized ones come in blocks of 128."""

    tuned_by_tokens = True

    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], tuned: Tuned = NOT_TUNED, **options: int
    ) -> None:
        super().__init__(spec, weights, params)
        self.tuned = tuned
        self.fixed = {name: value for name, value in options.items() if value}

    @staticmethod
    def tune_filter(options: Mapping[str, int], num_tokens: int) -> bool:
        """Whether options can be any good: no tile of rows far beyond the tokens, and sums that fit half of the registers."""
        sums = options["block_m"] * 2 * options["block_n"]
        return options["block_m"] < 2 * max(num_tokens, 16) and sums <= 128 * 32 * options["num_warps"]

    def launch(self, num_tokens: int, top_k: int) -> Tile:
        """The tile for so many tokens, tuned and chosen options included."""
        return self.config(num_tokens * top_k)._replace(**{**self.tuned.at(num_tokens), **self.fixed})

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, weights, ids, self.launch(*ids.shape))


@impl("moe_experts", "triton_invariant", priority=5, requires=("triton",), flags=Flags(batch_invariant=True))
class InvariantExperts(_Experts):
    """The same kernels with one tile shape for any number of tokens: that of 32 rows per expert."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        super().__init__(spec, weights, params)
        self.only_tile = self.config(32 * self.num_experts)

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, weights, ids, self.only_tile)


def _gemm(spec: Spec) -> type[FloatGemm] | type[Int4Gemm] | type[Float8Gemm]:
    scheme = spec.fact("scheme", "float")
    return FloatGemm if scheme == "float" else Int4Gemm if scheme == "w4a16" else Float8Gemm
