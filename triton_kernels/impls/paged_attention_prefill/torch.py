"""``paged_attention_prefill`` by gathered pages and scaled_dot_product_attention; see ``padded.py``."""

from __future__ import annotations

from ...impl import Flags, impl
from .._shared.padded import PaddedAttention


@impl("paged_attention_prefill", "torch", priority=10, flags=Flags(cuda_graph=False), options={"whole_batch": False})
class PrefillTorch(PaddedAttention):
    key = "paged_attention_prefill:torch"
    one_by_one = True
