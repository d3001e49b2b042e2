"""Paged prefill with a gather through pointers: the portable kernel (any page size, sm_80 and later, CDNA).

Algorithm: FlashAttention-2 (Dao, arXiv 2307.08691) over the paged cache, with the query heads of a KV head packed into the
rows of a block. Grid: one program per KV head and block of BLOCK_M packed rows, last blocks first because they see the most
keys; a program finds its request by a binary search over cu_q, so the grid follows from host integers alone. Registers hold
the float32 accumulator [BLOCK_M, value_dim], the running maximum and sum; q, and the pipelined tiles of K and V, pass through
shared memory. A loop without masks over the keys that all rows see, then one with masks over the diagonal and the window's
edge; tiles before the window are never visited. It is meant for page sizes below 64 and for devices without TMA.
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
from .._shared.attention import (
    LN2,
    AttentionParams,
    attend,
    cache_strides,
    find_request,
    packed_rows,
    unsupported_attention,
    visible_keys,
)


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
    sinks,
    alibi,
    scale,
    softcap,
    window,
    num_tokens,
    num_reqs,
    stride_qt,
    stride_qh,
    stride_table,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    TMA: tl.constexpr,
):
    """k_cache and v_cache are pointers, or with TMA descriptors of boxes [1, BLOCK_N, 1, head_dim]. Rows past the last
    request belong to a request of length 0, so that they become 0."""
    pid = tl.program_id(0)
    kv_head = pid % NUM_KV_HEADS
    block = (tl.num_programs(0) - 1 - pid) // NUM_KV_HEADS
    request = find_request(cu_q, num_reqs, block, GROUP, BLOCK_M)
    first_token = tl.load(cu_q + request)
    end_token = tl.load(cu_q + request + 1, mask=request < num_reqs, other=num_tokens)
    seq_len = tl.load(seq_lens + request, mask=request < num_reqs, other=0)
    first_row = (block - first_token * GROUP // BLOCK_M - request) * BLOCK_M
    num_rows = (end_token - first_token) * GROUP
    if first_row >= num_rows:
        return

    token, head = packed_rows(first_row, GROUP, BLOCK_M)
    inside = tl.arange(0, BLOCK_M) < num_rows - first_row
    base_token = first_token.to(tl.int64) + first_row // GROUP
    base_head = kv_head * GROUP
    dims = tl.arange(0, BLOCK_DK)
    q += base_token * stride_qt + base_head * stride_qh
    q_pointers = q + (token * stride_qt + head * stride_qh)[:, None] + dims[None, :]
    q_block = tl.load(q_pointers, mask=inside[:, None] & (dims < DK)[None, :], other=0.0)
    if WIDEN:
        q_block = q_block.to(tl.float32)
    slope = head.to(tl.float32)
    if alibi is not None:
        slope = tl.load(alibi + base_head + head, mask=inside, other=0.0).to(tl.float32)
    sink = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if sinks is not None:
        # A bound: Triton 3.9's interpreter refuses masks broadcast from a comparison of scalars.
        rows_with_sink = tl.where(seq_len > 0, num_rows - first_row, 0)
        sink_mask = tl.arange(0, BLOCK_M) < rows_with_sink
        sink = tl.load(sinks + base_head + head, mask=sink_mask, other=float("-inf")).to(tl.float32)

    before = seq_len - (end_token - first_token)
    first_position = before + first_row // GROUP
    last_position = before + (tl.minimum(first_row + BLOCK_M, num_rows) - 1) // GROUP
    low, high, full_begin, full_end = visible_keys(first_position, last_position, seq_len, window, CAUSAL, HAS_WINDOW, BLOCK_N)
    kv = (k_cache, v_cache, k_scale, v_scale)
    table = block_table + request.to(tl.int64) * stride_table
    result, log_sum = attend(
        q_block,
        first_position + token,
        slope,
        sink,
        kv,
        table,
        kv_head,
        low // BLOCK_N * BLOCK_N,
        high,
        full_begin,
        full_end,
        low,
        high,
        scale,
        softcap,
        window,
        CAUSAL,
        HAS_WINDOW,
        HAS_SOFTCAP,
        alibi is not None,
        DK,
        DV,
        BLOCK_DK,
        BLOCK_DV,
        BLOCK_N,
        PAGE_SIZE,
        STRIDES,
        TMA,
        False,
    )

    columns = tl.arange(0, BLOCK_DV)
    first_target = base_token * (NUM_KV_HEADS * GROUP) + base_head
    target = token * (NUM_KV_HEADS * GROUP) + head
    mask = inside[:, None] & (columns < DV)[None, :]
    tl.store(out + first_target * DV + (target * DV)[:, None] + columns[None, :], result.to(out.dtype.element_ty), mask=mask)
    if lse is not None:
        tl.store(lse + first_target + target, log_sum * LN2, mask=inside)


def launch_prefill(
    q: torch.Tensor,
    kv: LayerKV,
    caches: tuple[Any, Any],
    meta: AttentionMeta,
    params: AttentionParams,
    config: Mapping[str, int],
    tma: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Runs the kernel; ``caches`` are k and v as the kernel takes them."""
    q = q if q.stride(2) == 1 else q.contiguous()
    num_tokens, num_heads, dk = q.shape
    num_kv_heads, dv = kv.v.shape[2:]
    group = num_heads // num_kv_heads
    out = torch.empty(num_tokens, num_heads, dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(num_tokens, num_heads, dtype=torch.float32, device=q.device) if params.return_lse else None
    num_blocks = num_tokens * group // config["block_m"] + meta.num_reqs + 1
    prefill_kernel[(num_blocks * num_kv_heads,)](
        q,
        *caches,
        kv.k_scale,
        kv.v_scale,
        out,
        lse,
        meta.cu_q,
        meta.seq_lens,
        meta.block_table,
        num_tokens=num_tokens,
        num_reqs=meta.num_reqs,
        stride_qt=q.stride(0),
        stride_qh=q.stride(1),
        stride_table=meta.block_table.stride(0),
        STRIDES=cache_strides(kv),
        **params.kernel_args(),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        DK=dk,
        DV=dv,
        BLOCK_DK=max(16, triton.next_power_of_2(dk)),
        BLOCK_DV=max(16, triton.next_power_of_2(dv)),
        BLOCK_M=config["block_m"],
        BLOCK_N=config["block_n"],
        PAGE_SIZE=kv.page_size,
        TMA=tma,
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )
    return out if lse is None else (out, lse)


def tile_config(spec: Spec, tma: bool) -> dict[str, int]:
    """Tiles by head size and arch whose accumulator and scores stay in registers (checked ahead of time)."""
    head_dim = max(spec.fact("head_dim", 128), spec.fact("value_dim", 0))
    wide, converts = head_dim > 128, spec.fact("kv_dtype", spec.dtype) != spec.dtype
    block_m, block_n, num_warps, num_stages = 128, 32 if wide and (converts or not tma) else 64, 8, 2
    if spec.dtype == torch.float32:
        block_m, block_n, num_warps, num_stages = 16, 16, 4, 1 if wide else 2
    elif spec.arch.startswith("gfx"):
        block_m, block_n, num_warps, num_stages = 64 if wide or converts else 128, 16 if wide else 32, 4, 1
    elif spec.arch.startswith("sm_8") and head_dim > 64:
        block_m, block_n, num_warps = 64, 32, 8 if wide or converts else 4
    return {"block_m": block_m, "block_n": block_n, "num_warps": num_warps, "num_stages": num_stages}


@impl(
    "paged_attention_prefill",
    "pointer",
    priority=50,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_m": 0, "block_n": 0, "num_warps": 0, "num_stages": 0},
    tune_space={"block_m": (64, 128), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4)},
)
class PointerPrefill:
    """Options of 0 mean the choice of ``tile_config``."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        self.params = AttentionParams.of(spec, weights, params)
        self.config = {name: options[name] or value for name, value in tile_config(spec, tma=False).items()}

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return unsupported_attention(spec)

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return launch_prefill(q, kv, (kv.k, kv.v), meta, self.params, self.config, tma=False)
