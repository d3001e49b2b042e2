"""``paged_attention_prefill`` on a CPU in C; see ``native_attention.py``."""

from __future__ import annotations

from ...impl import Flags, impl
from .._shared.native_attention import NativeAttention


@impl("paged_attention_prefill", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class PrefillNative(NativeAttention):
    pass
