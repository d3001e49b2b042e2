"""``paged_attention_decode`` by FlashAttention 2 (package ``flash_attn``, 2.6 to 2.8), Dao, arXiv 2307.08691.

Steps with one query per request take ``flash_attn_with_kvcache``, which splits the keys of a request; others (drafts to
verify) take ``flash_attn_varlen_func`` with a block table. Both want pages of a multiple of 256 tokens. The library has no
float32, no sinks, no quantized cache and no values of another size than the keys. It promises equal bits on repeated runs of
the forward pass, and nothing about the rest of the batch.
"""

from __future__ import annotations

from ...impl import NEVER_MET_ITS_LIBRARY, impl
from .._shared.flash_attn import FlashAttention2


@impl(
    "paged_attention_decode", "flash_attn", priority=40, requires=("flash_attn",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",)
)
class DecodeFlashAttention2(FlashAttention2):
    split_decodes = True
