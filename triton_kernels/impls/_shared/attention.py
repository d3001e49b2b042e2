"""What the attention kernels share: which keys a block of query rows sees, reading the paged cache, the online softmax.

A block holds BLOCK_M packed rows of one request and one KV head: row m is query token m // GROUP and query head m % GROUP of
the heads that share the KV head, so that a short query still fills a matrix instruction. Scores are kept in base 2 (times
log2 e), everything but the two GEMMs is float32. A tile of keys that every row sees takes a path without masks; the others
load only keys that some row sees, because what lies in unused slots may be NaN and 0 * NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ...attention_meta import LayerKV
from ...spec import Spec
from .quantized_values import LIMITS

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class AttentionParams:
    """The bound arguments of the op, in the form that kernels take."""

    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    alibi: torch.Tensor | None
    return_lse: bool
    widen: bool  # multiply in float32: Triton's interpreter calculates with the bit patterns of bfloat16
    pin: bool  # in decode: convert values to q's dtype before they pass through shared memory to a matrix instruction

    @classmethod
    def of(cls, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> AttentionParams:
        given = {**params, **weights}
        if not given["scale"] > 0:
            raise ValueError(f"attention needs a positive scale, got {given['scale']}")
        return cls(
            given["scale"],
            given.get("causal", True),
            given.get("window"),
            given.get("softcap"),
            given.get("sinks"),
            given.get("alibi"),
            given.get("return_lse", False),
            spec.interpret and spec.dtype == torch.bfloat16,
            spec.arch.startswith("sm_") and not spec.interpret and spec.dtype != torch.float32,
        )

    def kernel_args(self) -> dict[str, Any]:
        """Keyword arguments that all attention kernels have in common."""
        return {
            "sinks": self.sinks,
            "alibi": self.alibi,
            "scale": self.scale,
            "softcap": self.softcap or 0.0,
            "window": self.window or 0,
            "CAUSAL": self.causal,
            "HAS_WINDOW": self.window is not None,
            "HAS_SOFTCAP": self.softcap is not None,
            "WIDEN": self.widen,
            "enable_fp_fusion": True,
        }


def cache_strides(kv: LayerKV) -> tuple[int, ...]:
    """Strides of page, slot and head, first of k, then of v, k_scale and v_scale (0 where there is none). They are
    compile-time arguments: an engine's never change."""
    return tuple(0 if tensor is None else tensor.stride(i) for tensor in kv for i in range(3))


def unsupported_attention(spec: Spec) -> list[str]:
    """Reasons that hold for every Triton attention kernel."""
    reasons = []
    for name in ("head_dim", "value_dim"):
        if spec.fact(name, 0) > 256:
            reasons.append(f"{name} {spec.fact(name)} is above 256")
    page_size = spec.fact("page_size", 16)
    if page_size & (page_size - 1):
        reasons.append(f"page_size {page_size} is not a power of two")
    kv_dtype = spec.fact("kv_dtype", spec.dtype)
    if kv_dtype != spec.dtype and kv_dtype not in LIMITS:
        reasons.append(f"reads a cache of the activations' dtype or int8 or fp8, not {kv_dtype}")
    ampere = spec.arch.startswith("sm_") and int(spec.arch[3:]) < 89
    if kv_dtype == torch.float8_e4m3fn and (ampere or spec.arch == "gfx942"):
        reasons.append(f"Triton cannot convert float8_e4m3fn on {spec.arch}")
    return reasons


@triton.jit
def find_request(cu_q, num_reqs, block, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The request of a block of rows, where request r's blocks start at cu_q[r] * GROUP // BLOCK_M + r.

    That spacing leaves room for every request's blocks whatever the lengths, so the grid is known without reading them.
    """
    low = 0
    high = num_reqs
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_q + middle) * GROUP // BLOCK_M + middle <= block:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def packed_rows(first_row, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """(token, head) of BLOCK_M rows, counted from token first_row // GROUP and from the first head of the KV head. Small
    numbers, known to the compiler where GROUP divides BLOCK_M: addresses are a 64-bit scalar and 32-bit offsets."""
    rows = tl.arange(0, BLOCK_M)
    if BLOCK_M % GROUP != 0:
        rows += first_row % GROUP
    return rows // GROUP, rows % GROUP


@triton.jit
def visible_keys(first, last, seq_len, window, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """For rows at positions first..last: keys [begin, end) that some row sees, and the whole tiles [full_begin, full_end)
    that all rows see. ``begin`` is not aligned to tiles; the full range is empty when full_begin >= full_end."""
    begin = 0
    full_begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(first - window + 1, 0)
        full_begin = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N) * BLOCK_N
    end = seq_len
    full_end = seq_len
    if CAUSAL:
        end = tl.maximum(last + 1, 0)
        full_end = tl.maximum(first + 1, 0)
    return begin, end, full_begin, full_end // BLOCK_N * BLOCK_N


@triton.jit
def _slots(table, start, inside, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, MASKED: tl.constexpr):
    """(page, slot in it) of the keys from position ``start``; one scalar page where a page holds the whole tile."""
    if PAGE_SIZE % BLOCK_N == 0:
        page = tl.load(table + start // PAGE_SIZE).to(tl.int64)
        slots = start % PAGE_SIZE + tl.arange(0, BLOCK_N)
    else:
        keys = start + tl.arange(0, BLOCK_N)
        page = tl.load(table + keys // PAGE_SIZE, mask=inside if MASKED else None, other=0 if MASKED else None).to(tl.int64)
        slots = keys % PAGE_SIZE
    return page, slots


@triton.jit
def _load_tile(
    cache,
    table,
    kv_head,
    start,
    low,
    high,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    OF: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Keys (or values) [BLOCK_N, BLOCK_D] from position ``start``; zero outside [low, high) if MASKED, and beyond DIM.
    OF: which tensor's strides, in the order of ``cache_strides``."""
    keys = start + tl.arange(0, BLOCK_N)
    inside = (keys >= low) & (keys < high)
    if TMA:
        page = tl.load(table + start // PAGE_SIZE)
        tile = cache.load([page, start % PAGE_SIZE, kv_head, 0]).reshape(BLOCK_N, BLOCK_D)
        if MASKED:
            tile = tl.where(inside[:, None], tile, tl.zeros_like(tile))
    else:
        dims = tl.arange(0, BLOCK_D)
        page, slots = _slots(table, start, inside, BLOCK_N, PAGE_SIZE, MASKED)
        rows = cache + kv_head * STRIDES[3 * OF + 2] + page * STRIDES[3 * OF] + slots * STRIDES[3 * OF + 1]
        pointers = rows[:, None] + dims[None, :]
        if MASKED:
            mask = inside[:, None] if DIM == BLOCK_D else inside[:, None] & (dims < DIM)[None, :]
            tile = tl.load(pointers, mask=mask, other=0.0)
        elif DIM == BLOCK_D:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=(dims < DIM)[None, :], other=0.0)
    return tile


@triton.jit
def _load_scales(
    scales,
    table,
    kv_head,
    start,
    low,
    high,
    BLOCK_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    OF: tl.constexpr,
    MASKED: tl.constexpr,
):
    keys = start + tl.arange(0, BLOCK_N)
    inside = (keys >= low) & (keys < high)
    page, slots = _slots(table, start, inside, BLOCK_N, PAGE_SIZE, MASKED)
    pointers = scales + kv_head * STRIDES[3 * OF + 2] + page * STRIDES[3 * OF] + slots * STRIDES[3 * OF + 1]
    return tl.load(pointers, mask=inside if MASKED else None, other=0.0 if MASKED else None)


@triton.jit
def _step(
    state,
    q,
    position,
    slope,
    kv,
    table,
    kv_head,
    start,
    low,
    high,
    scale,
    softcap,
    window,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
    PIN: tl.constexpr,
):
    """One tile of keys into the running (accumulator, maximum, sum)."""
    acc, peak, total = state
    k_cache, v_cache, k_scales, v_scales = kv
    MASK_K: tl.constexpr = MASKED and not TMA  # of a box, the scores of unused keys are masked below, which is enough
    k = _load_tile(k_cache, table, kv_head, start, low, high, DK, BLOCK_DK, BLOCK_N, PAGE_SIZE, STRIDES, 0, MASK_K, TMA)
    if k_scales is not None:
        k = k.to(tl.float32)  # on the way to bfloat16: fewer instructions than the direct conversion of fp8
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
    if k_scales is not None:
        scores *= _load_scales(k_scales, table, kv_head, start, low, high, BLOCK_N, PAGE_SIZE, STRIDES, 2, MASKED)[None, :]
    keys = start + tl.arange(0, BLOCK_N)
    factor = scale * LOG2E  # left for last, where it joins the subtraction of the maximum in one instruction
    if HAS_SOFTCAP:
        bent = 1.0 - 2.0 / (1.0 + tl.exp2(scores * (2.0 * LOG2E * scale / softcap)))  # tanh
        scores = bent * (softcap * LOG2E)
        factor = 1.0
    if HAS_ALIBI:
        scores = scores * factor + (slope * LOG2E)[:, None] * (keys[None, :] - position[:, None]).to(tl.float32)
        factor = 1.0
    if MASKED:
        seen = (keys >= low) & (keys < high)
        visible = seen[None, :]
        if CAUSAL:
            visible = visible & (keys[None, :] <= position[:, None])
        if HAS_WINDOW:
            visible = visible & (position[:, None] - keys[None, :] < window)
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
    base = new_peak
    if MASKED:  # a row that has seen nothing yet must not compute -inf - -inf
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores * factor - base[:, None])
    shrink = tl.exp2(peak - base)
    v = _load_tile(v_cache, table, kv_head, start, low, high, DV, BLOCK_DV, BLOCK_N, PAGE_SIZE, STRIDES, 1, MASKED, TMA)
    new_total = total * shrink + tl.sum(weights, 1)
    if v_scales is not None:
        v_scale = _load_scales(v_scales, table, kv_head, start, low, high, BLOCK_N, PAGE_SIZE, STRIDES, 3, MASKED)
        v = v.to(tl.float32)
        if q.dtype == tl.float16:  # weights times a small scale would leave fp16's range
            v *= v_scale[:, None]
        else:
            weights *= v_scale[None, :]
    v = v.to(q.dtype)
    if v_scales is not None and PIN:
        # The compiler would move the quantized values through shared memory and read them byte by byte, 64 times a tile. It moves
        # no conversion across code that it does not know.
        v = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [v], dtype=v.dtype, is_pure=False, pack=2)
    acc = tl.dot(weights.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new_peak, new_total


@triton.jit
def attend(
    q,
    position,
    slope,
    sink,
    kv,
    table,
    kv_head,
    begin,
    end,
    full_begin,
    full_end,
    low,
    high,
    scale,
    softcap,
    window,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    TMA: tl.constexpr,
    PIN: tl.constexpr,
):
    """Attention of q [BLOCK_M, BLOCK_DK] over the keys [begin, end): (accumulator / sum, base-2 log of the sum).

    begin, full_begin and full_end are multiples of BLOCK_N; [full_begin, full_end) needs no masks. ``sink`` is one more
    logit per row (-inf for none). Rows that see nothing give 0 and -inf.
    """
    acc = tl.zeros((q.shape[0], BLOCK_DV), tl.float32)
    peak = sink * LOG2E
    total = tl.where(sink == float("-inf"), 0.0, 1.0)
    state = (acc, peak, total)
    full_begin = tl.minimum(tl.maximum(full_begin, begin), tl.cdiv(end, BLOCK_N) * BLOCK_N)
    full_end = tl.maximum(tl.minimum(full_end, end // BLOCK_N * BLOCK_N), full_begin)
    # Column numbers and descriptors are computed anew for every tile: hoisted, they would take registers that the accumulator
    # of wide heads needs, and more programs fit without.
    for start in tl.range(full_begin, full_end, BLOCK_N, disable_licm=True):
        state = _step(
            state,
            q,
            position,
            slope,
            kv,
            table,
            kv_head,
            start,
            low,
            high,
            scale,
            softcap,
            window,
            CAUSAL,
            HAS_WINDOW,
            HAS_SOFTCAP,
            HAS_ALIBI,
            DK,
            DV,
            BLOCK_DK,
            BLOCK_DV,
            BLOCK_N,
            PAGE_SIZE,
            STRIDES,
            False,
            TMA,
            PIN,
        )
    num_before = (full_begin - begin) // BLOCK_N
    num_after = tl.cdiv(end - full_end, BLOCK_N)
    for i in tl.range(0, num_before + num_after, disable_licm=True):
        start = begin + i * BLOCK_N + tl.where(i < num_before, 0, full_end - full_begin)
        state = _step(
            state,
            q,
            position,
            slope,
            kv,
            table,
            kv_head,
            start,
            low,
            high,
            scale,
            softcap,
            window,
            CAUSAL,
            HAS_WINDOW,
            HAS_SOFTCAP,
            HAS_ALIBI,
            DK,
            DV,
            BLOCK_DK,
            BLOCK_DV,
            BLOCK_N,
            PAGE_SIZE,
            STRIDES,
            True,
            TMA,
            PIN,
        )
    acc, peak, total = state
    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    return out, tl.where(empty, float("-inf"), peak + tl.log2(tl.where(empty, 1.0, total)))
