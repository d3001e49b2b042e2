"""``paged_attention_decode`` by FlashInfer (package ``flashinfer``, 0.6), Ye et al., arXiv 2501.01005.

By ``BatchDecodeWithPagedKVCacheWrapper`` where every request has one query, else by the wrapper of prefill.
The decode wrapper takes tensor cores from four query heads per KV head. A plan is made on the host once per step, hence no
CUDA graphs.
The library has head sizes 64, 128 and 256, no float32, no given ALiBi slopes, no sinks in these wrappers, and one scale per
tensor for quantized caches, which the op does not have. It promises equal bits for no default setting.
"""

from __future__ import annotations

from ...impl import NEVER_MET_ITS_LIBRARY, Flags, impl
from .._shared.flashinfer import FlashInferAttention


@impl(
    "paged_attention_decode",
    "flashinfer",
    priority=35,
    requires=("flashinfer",),
    unproven=NEVER_MET_ITS_LIBRARY,
    devices=("cuda",),
    flags=Flags(cuda_graph=False, deterministic=False),
    options={"backend": "auto", "workspace_mib": 256},
)
class FlashInferDecode(FlashInferAttention):
    single_queries = True
