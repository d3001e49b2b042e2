"""``kv_cache_write`` by ``index_copy_`` on the cache's slots as rows of one flat tensor.

How many tokens are skipped is known on the device only, and nothing here waits for it: a skipped token writes back what
slot 0, which holds no token, has already. On a CPU looking is cheaper, and most batches skip nothing.
"""

from __future__ import annotations

import torch

from ...attention_meta import LayerKV
from ...impl import impl
from ..paged import slot_rows


@impl("kv_cache_write", "torch", priority=10)
def kv_cache_write_torch(k: torch.Tensor, v: torch.Tensor, kv: LayerKV, slot_mapping: torch.Tensor) -> None:
    if slot_mapping.shape[0] == 0:
        return
    none_skipped = slot_mapping.device.type == "cpu" and int(slot_mapping.min()) >= 0
    skipped = None if none_skipped else (slot_mapping < 0)[:, None, None]
    slots = slot_mapping if none_skipped else slot_mapping.clamp_min(0)
    for new, cache in ((k, kv.k), (v, kv.v)):
        rows, rows_per_page = slot_rows(cache)
        index = slots
        if rows_per_page != kv.page_size:
            index = slots + slots // kv.page_size * (rows_per_page - kv.page_size)
        new = new.to(cache.dtype)
        rows.index_copy_(0, index, new if skipped is None else torch.where(skipped, rows[:1], new))
