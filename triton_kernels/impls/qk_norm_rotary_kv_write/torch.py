"""``qk_norm_rotary_kv_write`` in float32 torch calls over q and k together, and the write of ``kv_cache_write``."""

from __future__ import annotations

import torch

from ...attention_meta import LayerKV
from ...impl import impl
from ..kv_cache_write.torch import kv_cache_write_torch


@impl("qk_norm_rotary_kv_write", "torch", priority=10)
def qk_norm_rotary_kv_write_torch(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    kv: LayerKV,
    slot_mapping: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    cos_sin: torch.Tensor,
    style: str = "neox",
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> torch.Tensor:
    heads = qkv.unflatten(1, (num_heads + 2 * num_kv_heads, -1))
    num_rotated, half = num_heads + num_kv_heads, cos_sin.shape[1] // 2
    qk = heads[:, :num_rotated].to(torch.float32, copy=True)
    for part, weight in ((qk[:, :num_heads], q_weight), (qk[:, num_heads:], k_weight)):
        if weight is not None:
            part.copy_(torch.nn.functional.rms_norm(part, part.shape[-1:], weight.float() + offset, eps))
    rotated = qk[..., : 2 * half]
    pairs = rotated.unflatten(-1, (2, half)) if style == "neox" else rotated.unflatten(-1, (half, 2)).mT
    cos, sin = cos_sin.index_select(0, positions)[:, None].chunk(2, dim=-1)
    first, second = pairs.unbind(-2)
    pairs.copy_(torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2))
    kv_cache_write_torch.target(qk[:, num_heads:], heads[:, num_rotated:], kv, slot_mapping)
    return qk[:, :num_heads].to(qkv.dtype).contiguous()
