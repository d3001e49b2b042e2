"""``paged_attention_prefill`` by FlashAttention 2 (package ``flash_attn``, 2.6 to 2.8), Dao, arXiv 2307.08691.

The call is ``flash_attn_varlen_func`` with a block table, which wants pages of a multiple of 256 tokens. The library
has no float32, no sinks, no quantized cache and no values of another size than the keys. It promises equal bits on repeated
runs of the forward pass, and nothing about the rest of the batch.
"""

from __future__ import annotations

from ...impl import NEVER_MET_ITS_LIBRARY, impl
from .._shared.flash_attn import FlashAttention2


@impl(
    "paged_attention_prefill",
    "flash_attn",
    priority=40,
    requires=("flash_attn",),
    unproven=NEVER_MET_ITS_LIBRARY,
    devices=("cuda",),
)
class PrefillFlashAttention2(FlashAttention2):
    split_decodes = False
