"""Paged prefill for Hopper and later: tiles of the cache arrive by tensor descriptor (TMA).

Algorithm and grid are those of ``pointer``. A tile of BLOCK_N keys of one page and one KV head is a box [1, BLOCK_N, 1,
head_dim] of the four-dimensional cache, so one instruction fetches it into shared memory without address arithmetic per row,
and fills the columns past head_dim with zeros; the page number is one scalar load per tile. The two GEMMs are warp-group
matrix instructions: two warp groups share a block of 128 rows, whose accumulator and running maximum and sum stay in
registers, as do the weights between the GEMMs (up to heads of 256, where the accumulator takes half of the registers).
Quantized tiles are converted on their way back to shared memory. Needs pages of 64 tokens or a multiple; meant for long
prompts there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from ...attention_meta import LayerKV
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.attention import shares_tiles, unsupported_attention
from .._shared.launch import next_power_of_2
from .pointer import PrefillLayer

TMA_ALIGNMENT_BYTES = 16


def page_box(cache: torch.Tensor, block_n: int) -> TensorDescriptor:
    """A descriptor whose box is ``block_n`` tokens of one page and one KV head."""
    width = max(16, next_power_of_2(cache.shape[-1]))
    return TensorDescriptor(cache, list(cache.shape), list(cache.stride()), [1, block_n, 1, width])


@impl(
    "paged_attention_prefill",
    "tma",
    priority=70,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_m": 0, "block_n": 0, "num_warps": 0, "num_stages": 0},
    tune_space={"block_m": (64, 128), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
)
class TmaPrefill(PrefillLayer):
    """Options of 0 mean the choice of ``tile_config``; ``block_n`` must divide the page size."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        super().__init__(spec, weights, params, **options)
        if spec.fact("page_size", 64) % self.config["block_n"]:
            raise ValueError(f"block_n {self.config['block_n']} does not divide the page size {spec.fact('page_size')}")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = unsupported_attention(spec)
        if spec.fact("page_size", 64) % 64:
            reasons.append(f"needs pages of 64 tokens or a multiple (block_size of the cache), not {spec.fact('page_size')}")
        if not spec.interpret and not (spec.arch.startswith("sm_") and int(spec.arch[3:]) >= 90):
            reasons.append(f"needs TMA (sm_90 or later), not {spec.arch}")
        if spec.dtype == torch.float32 and not spec.interpret:
            reasons.append("needs activations of 16 bits, whose GEMMs run on warp groups")
        if shares_tiles(spec):
            reasons.append("reads values apart from keys, not where they lie in them")
        itemsize = spec.fact("kv_dtype", spec.dtype).itemsize
        for name in ("head_dim", "value_dim"):
            if spec.fact(name, 128) * itemsize % TMA_ALIGNMENT_BYTES:
                reasons.append(f"{name} {spec.fact(name)} is no multiple of {TMA_ALIGNMENT_BYTES} bytes")
        return reasons

    def boxes(self, kv: LayerKV) -> tuple[Any, ...]:
        return page_box(kv.k, self.config["block_n"]), page_box(kv.v, self.config["block_n"])
