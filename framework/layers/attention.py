"""Self-attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..forward_batch import GroupBatch
from ..plan import BoundKernel

if TYPE_CHECKING:
    from triton_kernels.attention_meta import LayerKV


@dataclass(slots=True)
class Attention:
    """Projects, rotates, writes the cache, attends, projects.

    qkv, o          linear
    q_norm, k_norm  rms_norm over each head, or None
    rotary          or None, if positions are learned
    heads           query heads, KV heads, KV heads: how the rows of qkv split
    """

    qkv: BoundKernel
    o: BoundKernel
    q_norm: BoundKernel | None
    k_norm: BoundKernel | None
    rotary: BoundKernel | None
    write: BoundKernel
    decode: BoundKernel
    prefill: BoundKernel
    heads: list[int]
    head_dim: int

    def __call__(
        self, x: torch.Tensor, positions: torch.Tensor, num_decode_tokens: int, group: GroupBatch, kv: LayerKV
    ) -> torch.Tensor:
        """x [T, H] -> [T, H]. q, k and v stay views of one tensor."""
        q, k, v = self.qkv(x).view(x.shape[0], -1, self.head_dim).split(self.heads, 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, None), self.k_norm(k, None)
        if self.rotary is not None:
            self.rotary(q, k, positions)
        self.write(k, v, kv, group.slot_mapping)
        if group.prefill is None:
            out = self.decode(q, kv, group.decode)
        elif group.decode is None:
            out = self.prefill(q, kv, group.prefill)
        else:
            n = num_decode_tokens
            out = torch.cat((self.decode(q[:n], kv, group.decode), self.prefill(q[n:], kv, group.prefill)))
        return self.o(out.flatten(1))
