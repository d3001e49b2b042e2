"""``copy_blocks`` by indexing whole pages."""

from __future__ import annotations

import torch

from ...attention_meta import LayerKV
from ...impl import impl


@impl("copy_blocks", "torch", priority=10)
def copy_blocks_torch(kv: LayerKV, src: torch.Tensor, dst: torch.Tensor) -> None:
    for cache in kv.stored():
        pages = cache.view(torch.uint8) if cache.element_size() == 1 else cache  # torch cannot copy rows of float8
        pages.index_copy_(0, dst, pages.index_select(0, src))
