"""Paged decode attention, split along the keys (flash-decoding), on a plain grid.

Algorithm: a decode step has few query rows and many keys, so the keys of a request are cut into splits that run in parallel,
and a second kernel combines them (Dao et al., Flash-Decoding, 2023). Grid: (KV heads x row blocks, splits, requests), with
the number of splits bounded by the longest sequence; programs past a request's own splits return at once. Neighbouring
programs read neighbouring heads of the same pages. Registers hold the float32 accumulator [BLOCK_M, value_dim] for the query
heads of one KV head and for one or two blocks of query tokens at once, so that a key is read once for a group and for the drafts
of a request; two tiles of K and V are in shared memory, one multiplied while the other loads. It suits eager steps, where the
bound of the longest sequence is tight; ``balanced`` suits bounds that are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...attention_meta import AttentionMeta, LayerKV
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.attention import AttentionParams, unsupported_attention
from ._call import DecodeCall, DecodeTiles
from ._kernels import decode_split


@triton.jit(do_not_specialize=["num_tokens"])
def splitkv_kernel(
    q,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    out,
    lse,
    partial,
    partial_lse,
    cu_q,
    seq_lens,
    block_table,
    sinks,
    alibi,
    scale,
    softcap,
    window,
    num_tokens,
    stride_qt,
    stride_qh,
    stride_table,
    C: tl.constexpr,
    CUTS: tl.constexpr,
):
    tensors = (q, k_cache, v_cache, k_scale, v_scale, out, lse, partial, partial_lse, cu_q, seq_lens, block_table, sinks, alibi)
    strides = (stride_qt, stride_qh, stride_table)
    kv_head = tl.program_id(0) % C.NUM_KV_HEADS
    row_block = tl.program_id(0) // C.NUM_KV_HEADS
    decode_split(
        tl.program_id(2), kv_head, row_block, tl.program_id(1), tensors, strides, scale, softcap, window, num_tokens, C, CUTS
    )


@impl(
    "paged_attention_decode",
    "splitkv",
    priority=60,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"chunk": 256, "block_n": 0, "num_warps": 0, "num_stages": 0},
    tune_space={"chunk": (128, 256, 512, 1024), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
)
class SplitKVDecode:
    """``chunk``: keys per split of a short request, a multiple of ``block_n``. Options of 0 follow the arch."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        self.params = AttentionParams.of(spec, weights, params)
        self.tiles = DecodeTiles.choose(spec, **options)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return unsupported_attention(spec)

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        call = DecodeCall(q, kv, meta, self.params, self.tiles)
        grid = (kv.v.shape[2] * self.tiles.row_grid(meta), self.tiles.splits(meta, self.params.window), meta.num_reqs)
        splitkv_kernel[grid](*call.tensors, **call.arguments, **self.tiles.launch)
        return call.combine()
