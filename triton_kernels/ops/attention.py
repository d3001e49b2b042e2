"""``paged_attention_prefill`` and ``paged_attention_decode``: one contract, two regimes.

Prefill takes any number of new tokens per request, decode 1 to 8 (drafts to verify). Both read everything from the paged
cache: the new keys and values are written before.
Source: Kwon et al., PagedAttention, arXiv 2309.06180.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..attention_meta import AttentionMeta, LayerKV
from ..cases.attention import DECODE_CASES, PREFILL_CASES
from ..op import Cost, Op
from .kv_cache import cached_head_bytes, value_dim

_QUERIES = 1024
"""Queries that the reference looks at together: bounds the memory of its scores."""


def reference(
    q: torch.Tensor,
    kv: LayerKV,
    meta: AttentionMeta,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    alibi: torch.Tensor | None = None,
    return_lse: bool = False,
    alibi_scale: float | None = None,
    position_bias: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of q [T, Hq, Dk] over the paged cache -> [T, Hq, Dv] in q's dtype (and LSE f32 [T, Hq], natural log).

    Query i of a request with n queries and sequence length L stands at position p = L - n + i and sees the keys j with
    j <= p (causal) and |p - j| < window. Score = scale * q.k, then softcap * tanh(score / softcap), then + alibi[h] * (j - p).
    alibi_scale: in place of that, + alibi_scale * (r(alibi[h] * r(j)) - r(alibi[h] * r(p))), where r rounds to bfloat16, as some
    models were trained (Falcon).
    position_bias f32 [Hq, D], causal and without alibi: + position_bias[h, min(p - j, D - 1)] (T5, arXiv 1910.10683).
    sinks f32 [Hq]: one more logit per head in the softmax's denominator, with no value. Head h reads KV head h // (Hq / Hk).
    Rows of requests with seq_len 0 are 0, their LSE is -inf.
    """
    num_tokens, num_heads, _ = q.shape
    out = q.new_zeros(num_tokens, num_heads, kv.v.shape[-1])
    lse = torch.full((num_tokens, num_heads), -torch.inf, dtype=torch.float32, device=q.device)
    starts, lengths = meta.cu_q.tolist(), meta.seq_lens.tolist()
    for r, length in enumerate(lengths):
        num_queries = starts[r + 1] - starts[r]
        if length == 0 or num_queries == 0:
            continue
        keys = _gather(kv.k, kv.k_scale, meta.block_table[r], length)
        values = _gather(kv.v, kv.v_scale, meta.block_table[r], length)
        group = num_heads // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        for first in range(starts[r], starts[r + 1], _QUERIES):
            rows = slice(first, min(first + _QUERIES, starts[r + 1]))
            scores = torch.einsum("qhd,khd->hqk", q[rows].double(), keys) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            position = torch.arange(rows.start, rows.stop, device=q.device) + (length - starts[r + 1])
            distance = position[:, None] - torch.arange(length, device=q.device)
            if alibi is not None:
                scores = scores + _alibi(alibi, position, torch.arange(length, device=q.device), alibi_scale)
            if position_bias is not None:
                scores = scores + position_bias.double()[:, distance.clamp(0, position_bias.shape[1] - 1)]
            hidden = torch.zeros_like(distance, dtype=torch.bool)
            if causal:
                hidden |= distance < 0
            if window is not None:
                hidden |= distance.abs() >= window
            scores = scores.masked_fill(hidden, -torch.inf)
            total = torch.logsumexp(scores, dim=-1)
            if sinks is not None:
                total = torch.logaddexp(total, sinks.double()[:, None].expand_as(total))
            weights = torch.exp(scores - total[..., None])
            out[rows] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
            lse[rows] = total.T.to(torch.float32)
    return (out, lse) if return_lse else out


def _alibi(slopes: torch.Tensor, position: torch.Tensor, key: torch.Tensor, scale: float | None) -> torch.Tensor:
    """f64 [Hq, Q, L]: what is added to the scores."""
    if scale is None:
        return slopes.double()[:, None, None] * (key - position[:, None])
    of_key, of_query = ((slopes[:, None] * at.bfloat16()).bfloat16().double() for at in (key, position))
    return scale * (of_key[:, None, :] - of_query[:, :, None])


def _gather(cache: torch.Tensor, scale: torch.Tensor | None, blocks: torch.Tensor, length: int) -> torch.Tensor:
    """The first ``length`` tokens of a request, dequantized to float64: [length, Hk, D]."""
    pages = blocks[: -(-length // cache.shape[1])].long()
    values = cache[pages].flatten(0, 1)[:length].double()
    return values if scale is None else values * scale[pages].flatten(0, 1)[:length].double()[..., None]


def fake(
    q,
    kv,
    meta,
    scale,
    causal=True,
    window=None,
    softcap=None,
    sinks=None,
    alibi=None,
    return_lse=False,
    alibi_scale=None,
    position_bias=None,
):  # type: ignore[no-untyped-def]
    out = q.new_empty(*q.shape[:-1], kv.v.shape[-1])
    return (out, q.new_empty(q.shape[:-1], dtype=torch.float32)) if return_lse else out


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_heads, num_kv_heads, head_dim, value_dim (head_dim), aliased (1: values lie in the keys), kv_bytes, act_bytes,
    window (0 = none), causal (1 = yes)."""
    heads, kv_heads, widths = dims["num_heads"], dims["num_kv_heads"], dims["head_dim"] + value_dim(dims)
    causal = dims.get("causal", 1)
    window = dims.get("window", 0)
    pairs = keys = 0.0
    for queries, context in zip(q_lens, ctx_lens):
        if window and context > window:
            pairs += queries * min(context, window if causal else 2 * window - 1)
            keys += min(context, window + queries - 1)
        else:
            pairs += queries * (context - (queries - 1) / 2 if causal else context)
            keys += context
    moved = keys * kv_heads * cached_head_bytes(dims) + sum(q_lens) * heads * widths * dims.get("act_bytes", 2)
    return Cost(2 * heads * widths * pairs, moved)


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: bound.get(name) for name in ("window", "softcap")}
    return {
        **given,
        "sinks": bound.get("sinks") is not None,
        "alibi": bound.get("alibi") is not None,
        "rounded_alibi": bound.get("alibi_scale") is not None,
        "position_bias": bound.get("position_bias") is not None,
        "causal": bound.get("causal", True),
        "return_lse": bound.get("return_lse", False),
    }


_STATIC = ("scale", "causal", "window", "softcap", "sinks", "alibi", "return_lse", "alibi_scale", "position_bias")
paged_attention_prefill = Op(
    "paged_attention_prefill", reference, fake, cost, cases=PREFILL_CASES, bind_args=_STATIC, row_args=("q", "meta"), facts=facts
)
paged_attention_decode = Op(
    "paged_attention_decode", reference, fake, cost, cases=DECODE_CASES, bind_args=_STATIC, row_args=("q", "meta"), facts=facts
)
