"""Paged prefill with a gather through pointers: the portable kernel (any page size, sm_80 and later, CDNA).

Algorithm: FlashAttention-2 (Dao, arXiv 2307.08691) over the paged cache, with the query heads of a KV head packed into the
rows of a block. Grid: one program per KV head and block of BLOCK_M packed rows, last blocks first because they see the most
keys; a program finds its request by a binary search over cu_q, so the grid follows from host integers alone. Registers hold
the float32 accumulator [BLOCK_M, value_dim], the running maximum and sum; q, and the pipelined tiles of K and V, pass through
shared memory. A loop without masks over the keys that all rows see, then one with masks over the diagonal and the window's
edge; tiles before the window are never visited. It is meant for page sizes below 64 and for devices without TMA.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...attention_meta import AttentionMeta, LayerKV
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.attention import AttentionParams, unsupported_attention
from .._shared.attention_loop import LN2, attend
from .._shared.attention_rows import load_rows, store_rows, visible_keys
from .._shared.launch import Launch
from .._shared.request_blocks import find_request


@triton.jit(do_not_specialize=["num_tokens", "num_reqs"])
def prefill_kernel(
    q,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    out,
    lse,
    cu_q,
    seq_lens,
    block_table,
    num_tokens,
    num_reqs,
    stride_qt,
    stride_qh,
    stride_table,
    sinks,
    bias,
    scale,
    softcap,
    window,
    C: tl.constexpr,
):
    """k_cache and v_cache are pointers, or with TMA descriptors of boxes [1, BLOCK_N, 1, head_dim]. Rows past the last
    request belong to a request of length 0, so that they become 0."""
    pid = tl.program_id(0)
    kv_head = pid % C.NUM_KV_HEADS
    block = (tl.num_programs(0) - 1 - pid) // C.NUM_KV_HEADS
    request = find_request(cu_q, num_reqs, block, C.GROUP, C.BLOCK_M)
    first_token = tl.load(cu_q + request)
    end_token = tl.load(cu_q + request + 1, mask=request < num_reqs, other=num_tokens)
    seq_len = tl.load(seq_lens + request, mask=request < num_reqs, other=0)
    first_row = (block - first_token * C.GROUP // C.BLOCK_M - request) * C.BLOCK_M
    num_rows = (end_token - first_token) * C.GROUP
    if first_row >= num_rows:
        return

    before = seq_len - (end_token - first_token)
    has_sink = tl.where(seq_len > 0, 1, 0)
    rows, sink = load_rows(
        q,
        sinks,
        bias,
        stride_qt,
        stride_qh,
        scale,
        first_token,
        kv_head,
        first_row,
        num_rows,
        before,
        has_sink,
        k_scale is not None,
        C,
    )
    first_position = before + first_row // C.GROUP
    last_position = before + (tl.minimum(first_row + C.BLOCK_M, num_rows) - 1) // C.GROUP
    low, high, full_begin, full_end = visible_keys(first_position, last_position, seq_len, window, C)
    results = attend(
        (rows,),
        (sink,),
        (k_cache, v_cache, k_scale, v_scale),
        block_table + request.to(tl.int64) * stride_table,
        kv_head,
        low // C.BLOCK_N * C.BLOCK_N,
        high,
        full_begin,
        full_end,
        low,
        high,
        softcap,
        window,
        bias is not None,
        C,
    )
    result, log_sum = results[0]
    store_rows(out, lse, result, log_sum * LN2, first_token.to(tl.int64), kv_head, first_row, num_rows, C)


def tile_config(spec: Spec) -> dict[str, int]:
    """Tiles by head size and arch whose accumulator and scores stay in registers, and of which one is multiplied while others load
    (checked ahead of time)."""
    head_dim = max(spec.fact("head_dim", 128), spec.fact("value_dim", 0))
    wide, latent, converts = head_dim > 128, head_dim > 256, spec.fact("kv_dtype", spec.dtype) != spec.dtype
    block_m, block_n, num_warps, num_stages = 128, 32 if wide else 64, 8, 3
    if spec.dtype == torch.float32:
        block_m, block_n, num_warps, num_stages = 16, 16, 4, 1 if wide else 2
    elif latent:  # values as wide as keys: what a row sums takes twice the registers
        block_m, block_n, num_warps, num_stages = 64, 32, 8, 3
        if spec.arch.startswith("gfx"):
            block_m, block_n, num_warps, num_stages = 32, 16, 4, 2
        elif spec.arch.startswith("sm_8"):
            block_m = 32
        elif spec.arch == "sm_100":
            block_n = 16
    elif spec.arch.startswith("gfx"):
        few_keys = wide or converts
        block_m, block_n, num_warps, num_stages = 64 if few_keys else 128, 16 if few_keys else 32, 4, 2
        if converts and not wide:
            num_warps = 2  # each warp converts all keys and values of a tile
    elif spec.arch.startswith("sm_8") and head_dim > 64:
        block_m, block_n, num_warps = 64, 32, 8 if wide or converts else 4
    elif spec.arch.startswith("sm_8") and spec.fact("position_bias", False):
        block_n = 32  # a tile of biases passes through shared memory and registers beside the keys
    return {"block_m": block_m, "block_n": block_n, "num_warps": num_warps, "num_stages": num_stages}


class PrefillLayer:
    """One layer's prefill attention. Options of 0 mean the choice of ``tile_config``."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        self.params = AttentionParams.of(spec, weights, params)
        self.config = {name: options[name] or value for name, value in tile_config(spec).items()}
        self._frozen: dict[tuple[Hashable, ...], tuple[Launch, tuple[Any, ...]]] = {}

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        q = q if q.stride(2) == 1 else q.contiguous()
        num_tokens, num_heads, _ = q.shape
        num_kv_heads, dv = kv.v.shape[2:]
        launch, boxes = self._freeze(q, kv)
        out = q.new_empty(num_tokens, num_heads, dv)
        lse = q.new_empty(num_tokens, num_heads, dtype=torch.float32) if self.params.return_lse else None
        num_blocks = num_tokens * num_heads // num_kv_heads // self.config["block_m"] + meta.num_reqs + 1
        for box, cache in zip(boxes, kv):
            box.base = cache
        launch(
            (num_blocks * num_kv_heads,),
            q,
            *(boxes or kv[:2]),
            *kv[2:],
            out,
            lse,
            meta.cu_q,
            meta.seq_lens,
            meta.block_table,
            num_tokens,
            meta.num_reqs,
            *q.stride()[:2],
            meta.block_table.stride(0),
        )
        for box in boxes:  # or a cache would live as long as the layer
            box.base = None
        return out if lse is None else (out, lse)

    def boxes(self, kv: LayerKV) -> tuple[Any, ...]:
        """Tensor descriptors of k and v, for the kernels that take them."""
        return ()

    def _freeze(self, q: torch.Tensor, kv: LayerKV) -> tuple[Launch, tuple[Any, ...]]:
        """The launch for q and a cache of such shapes, and its descriptors, whose memory a call fills in."""
        key = self.params.shapes(q, kv)
        found = self._frozen.get(key)
        if found is None:
            config = self.config
            boxes = self.boxes(kv)
            constants = self.params.constants(q, kv, config["block_m"], config["block_n"], tma=bool(boxes))
            options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
            found = self._frozen[key] = Launch(prefill_kernel, **self.params.kernel_args(), C=constants, **options), boxes
        return found


@impl(
    "paged_attention_prefill",
    "pointer",
    priority=50,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_m": 0, "block_n": 0, "num_warps": 0, "num_stages": 0},
    tune_space={"block_m": (64, 128), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
)
class PointerPrefill(PrefillLayer):
    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return unsupported_attention(spec)
