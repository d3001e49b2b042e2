"""What attention kernels are handed besides q: the paged cache of a layer, and where each request's tokens lie in it.

Block and page: the engine gives out blocks, numbered over the whole pool; here, at the kernels' border, page i of a layer is what
block i holds of that layer. So ``block_size`` there is ``page_size`` here, and a block table, whose name both sides share, lists
pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class LayerKV(NamedTuple):
    """The KV cache of one layer.

    k, v               [num_pages, page_size, num_kv_heads, head_dim]; last dimension contiguous, other strides free. Page 0
                       belongs to the null block: never read for a real token. v may have another head_dim, and may be the first
                       elements of k (``is_aliased``).
    k_scale, v_scale   f32 [num_pages, page_size, num_kv_heads] for quantized caches, else None.
    """

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    @property
    def page_size(self) -> int:
        return self.k.shape[1]

    def stored(self) -> list[torch.Tensor]:
        """The tensors that have memory of their own."""
        return [cache for cache in (self.k, None if self.is_aliased else self.v, self.k_scale, self.v_scale) if cache is not None]

    @property
    def is_aliased(self) -> bool:
        """Whether the values are the first elements of the keys, stored once."""
        return self.v.data_ptr() == self.k.data_ptr() and self.v.stride() == self.k.stride()


@dataclass
class AttentionMeta:
    """Positions of a batch of requests in one KV group; shared by the layers of the group for one step.

    cu_q         int32 [R+1]: query rows of request r are cu_q[r]:cu_q[r+1]
    seq_lens     int32 [R]: tokens in the cache including this step's; the last query of r is at position seq_lens[r]-1.
                 0 marks a padding row: its output is 0, its LSE -inf
    block_table  int32 [R, max_blocks]: the page of request r's tokens b * page_size and on
    max_q        host: upper bound of queries per request
    max_seq_len  host: upper bound of seq_lens
    workspace    persistent scratch by impl name; ``begin_step`` fills it once per step for all layers of the group
    """

    cu_q: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    max_q: int
    max_seq_len: int
    workspace: dict[str, Any] = field(default_factory=dict)

    @property
    def num_reqs(self) -> int:
        return self.seq_lens.shape[0]

    def take(self, first: int, last: int) -> AttentionMeta:
        """Requests first .. last - 1, as a batch of their own."""
        cu_q, seq_lens = self.cu_q[first : last + 1], self.seq_lens[first:last]
        return AttentionMeta(
            cu_q=cu_q - cu_q[0],
            seq_lens=seq_lens,
            block_table=self.block_table[first:last],
            max_q=int(cu_q.diff().max()),
            max_seq_len=int(seq_lens.max()),
        )

    def scratch(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """At least ``size`` elements of ``workspace``, with anything in them: the same memory on every call, until one asks for
        more."""
        found: torch.Tensor | None = self.workspace.get(name)
        if found is None or found.numel() < size:
            enough = 1 << (size - 1).bit_length()  # so that a growing batch does not allocate in every step
            found = self.workspace[name] = torch.empty(enough, dtype=dtype, device=self.seq_lens.device)
        return found
