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

import triton
import triton.language as tl

from ...attention_meta import AttentionMeta, LayerKV
from ...impl import Flags, impl
from ._call import DecodeLayer
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
    num_tokens,
    stride_qt,
    stride_qh,
    stride_table,
    sinks,
    bias,
    scale,
    softcap,
    window,
    C: tl.constexpr,
    CUTS: tl.constexpr,
):
    tensors = (q, k_cache, v_cache, k_scale, v_scale, out, lse, partial, partial_lse, cu_q, seq_lens, block_table, sinks, bias)
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
    options={"chunk": 0, "block_n": 0, "num_warps": 0, "num_stages": 0},
    tune_space={"chunk": (128, 256, 512, 1024), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
)
class SplitKVDecode(DecodeLayer):
    """``chunk``: keys per split of a short request, a multiple of ``block_n``. Options of 0 follow the arch."""

    kernel = splitkv_kernel

    def grid(self, kv: LayerKV, meta: AttentionMeta) -> tuple[int, ...]:
        tiles = self.tiles
        return kv.v.shape[2] * tiles.row_grid(meta), tiles.splits(meta, self.params.window), meta.num_reqs
