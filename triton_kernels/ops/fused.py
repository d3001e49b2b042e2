"""``qk_norm_rotary_kv_write``: what happens between the qkv projection and attention, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..attention_meta import LayerKV
from ..cases.fused import CASES
from ..op import Cost, Op
from .kv_cache import cached_head_bytes, kv_cache_write_reference
from .norm import rms_norm_reference
from .rotary import reference as rotary_reference


def reference(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    kv: LayerKV,
    slot_mapping: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    cos_sin: torch.Tensor,
    style: Literal["neox", "gptj"] = "neox",
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> torch.Tensor:
    """qkv [T, (Hq + 2 Hk) * D] -> q [T, Hq, D], normalized and rotated; k (normalized, rotated) and v go to the cache.

    q_weight, k_weight [D] or None: RMS norm over each head before the rotation (``rms_norm``'s eps and offset).
    positions, cos_sin, style as in ``rotary``; kv, slot_mapping as in ``kv_cache_write``. qkv itself is not changed.
    k is rounded once, to what the cache holds: quantized values of a quantized cache are those of the rotated k in f32.
    """
    heads = qkv.unflatten(1, (num_heads + 2 * num_kv_heads, -1))
    q, k, v = (part.clone() for part in heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1))
    # In float64 between the stages: one rounding at the end, as a fused kernel has.
    q, k = q.double(), k.double()
    if q_weight is not None:
        q = rms_norm_reference(q, None, q_weight, eps, offset)
    if k_weight is not None:
        k = rms_norm_reference(k, None, k_weight, eps, offset)
    rotary_reference(q, k, positions, cos_sin, style)
    kv_cache_write_reference(k, v, kv, slot_mapping)
    return q.to(qkv.dtype)


def fake(
    qkv,
    positions,
    kv,
    slot_mapping,
    num_heads,
    num_kv_heads,
    cos_sin,
    style="neox",
    q_weight=None,
    k_weight=None,  # type: ignore[no-untyped-def]
    eps=1e-6,
    offset=0.0,
):
    return qkv.new_empty(qkv.shape[0], num_heads, qkv.shape[1] // (num_heads + 2 * num_kv_heads))


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_heads, num_kv_heads, head_dim, act_bytes, kv_bytes."""
    tokens, heads, kv_heads = sum(q_lens), dims["num_heads"], dims["num_kv_heads"]
    moved = (2 * heads + 2 * kv_heads) * dims["head_dim"] * dims.get("act_bytes", 2) + kv_heads * cached_head_bytes(dims)
    return Cost(8 * tokens * (heads + kv_heads) * dims["head_dim"], tokens * moved)


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_heads": bound["num_heads"],
        "num_kv_heads": bound["num_kv_heads"],
        "style": bound.get("style", "neox"),
        "rotary_dim": bound["cos_sin"].shape[1],
        "qk_norm": bound.get("q_weight") is not None,
    }


qk_norm_rotary_kv_write = Op(
    "qk_norm_rotary_kv_write",
    reference,
    fake,
    cost,
    cases=CASES,
    mutates=("kv",),
    fuses=("rms_norm", "rotary", "kv_cache_write"),
    facts=facts,
    row_args=("qkv", "positions", "slot_mapping"),
    bind_args=("num_heads", "num_kv_heads", "cos_sin", "style", "q_weight", "k_weight", "eps", "offset"),
)
