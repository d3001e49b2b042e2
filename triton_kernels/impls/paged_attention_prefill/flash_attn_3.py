"""``paged_attention_prefill`` by FlashAttention 3 for Hopper (module ``flash_attn_interface``, 3.0 betas), arXiv 2407.08608.

The call is ``flash_attn_with_kvcache`` with ragged queries and a page table of any page size (pages of whole tiles arrive by
TMA). The library chooses how to split keys from the shapes that the host knows. It has no float32, no ALiBi and no sinks,
and its scales of a quantized cache are per request and head, not per token. It promises equal bits on repeated runs, and
nothing about the rest of the batch.
"""

from __future__ import annotations

from ...impl import NEVER_MET_ITS_LIBRARY, impl
from .._shared.flash_attn import FlashAttention3


@impl(
    "paged_attention_prefill",
    "flash_attn_3",
    priority=45,
    requires=("flash_attn_interface",),
    unproven=NEVER_MET_ITS_LIBRARY,
    devices=("cuda",),
    options={"num_splits": 0},
)
class PrefillFlashAttention3(FlashAttention3):
    pass
