"""``kv_cache_write`` by ``index_copy_`` on the cache's slots as rows of one flat tensor.

How many tokens are skipped is known on the device only, and nothing here waits for it: a skipped token writes back what
slot 0, which holds no token, has already. On a CPU looking waits for nothing, and most batches skip nothing.
"""

from __future__ import annotations

import torch

from ...attention_meta import LayerKV
from ...impl import impl
from .._shared.paged import slot_rows
from ..quantize_activation.torch import quantize


@impl("kv_cache_write", "torch", priority=10)
def kv_cache_write_torch(
    k: torch.Tensor,
    v: torch.Tensor | None,
    kv: LayerKV,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    if slot_mapping.shape[0] == 0:
        return
    none_skipped = slot_mapping.device.type == "cpu" and int(slot_mapping.min()) >= 0
    skipped = None if none_skipped else slot_mapping < 0
    slots = slot_mapping if none_skipped else slot_mapping.clamp_min(0)
    for new, cache, scales, static in ((k, kv.k, kv.k_scale, k_scale), (v, kv.v, kv.v_scale, v_scale)):
        if new is None:
            continue
        if scales is None:
            _write(new.to(cache.dtype), cache, slots, skipped)
        else:
            quantized, scale = quantize(new, cache.dtype, "token", static)
            # As bytes: torch cannot copy rows of float8.
            _write(quantized.view(torch.uint8), cache.view(torch.uint8), slots, skipped)
            _write(scale[..., 0].expand(new.shape[:-1]), scales, slots, skipped)


def _write(new: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, skipped: torch.Tensor | None) -> None:
    """One row of ``new`` [T, ...] per slot of ``cache`` [pages, page_size, ...]."""
    rows, rows_per_page = slot_rows(cache)
    page_size = cache.shape[1]
    if rows_per_page != page_size:
        slots = slots + slots // page_size * (rows_per_page - page_size)
    if skipped is not None:
        new = torch.where(skipped.view(-1, *[1] * (new.dim() - 1)), rows[:1], new)
    rows.index_copy_(0, slots, new)
