"""``paged_attention_prefill`` by torch's flex_attention (2.11 to 2.13): compiled on a GPU, unfused on a CPU.

The pages of a batch are gathered and padded to its longest request first (and dequantized, where the cache is quantized): the
library could walk pages in place, but it multiplies what lies in the unused slots of a page by a weight of 0, and 0 * NaN is
NaN. Sinks, which it does not know, are applied by the log-sum-exp. A CPU materializes all scores, so the priority is below all.
"""

from __future__ import annotations

from ...impl import Flags, impl
from .._shared.flex import FlexAttention


@impl(
    "paged_attention_prefill",
    "flex",
    priority=5,
    flags=Flags(cuda_graph=False, deterministic=False),
    options={"whole_batch": False},
)
class FlexPrefill(FlexAttention):
    key = "paged_attention_prefill:flex"
    one_by_one = True
