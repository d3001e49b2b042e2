"""Self-attention over the paged cache, between its projections."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...plan import BoundKernel
from ..batch import ForwardBatch
from .linear import Linear
from .paged_attention import PagedAttention


@dataclass(slots=True)
class Separate:
    """What lies between the qkv projection and attention, one op after the other.

    q_norm, k_norm  rms_norm over each head, or None
    rotary          or None, if positions are learned
    heads           query heads, KV heads, KV heads: how the rows of qkv split
    """

    q_norm: BoundKernel | None
    k_norm: BoundKernel | None
    rotary: BoundKernel | None
    paged: PagedAttention
    heads: list[int]
    head_dim: int

    def __call__(self, qkv: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """qkv [T, (Hq + 2 Hk) * D] -> q [T, Hq, D], normalized and rotated; k and v go to the cache. q, k and v are views of qkv,
        which is rotated in place."""
        q, k, v = qkv.view(qkv.shape[0], -1, self.head_dim).split(self.heads, 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, None), self.k_norm(k, None)
        if self.rotary is not None:
            self.rotary(q, k, batch.positions)
        self.paged.write(k, v, batch)
        return q


@dataclass(slots=True)
class Fused:
    """The same in one kernel, ``qk_norm_rotary_kv_write``."""

    kernel: BoundKernel
    paged: PagedAttention

    def __call__(self, qkv: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """As ``Separate``."""
        return self.kernel(qkv, batch.positions, *self.paged.place(batch))


@dataclass(slots=True)
class Attention:
    """Projects, prepares (norms, rotation, write of the cache), attends, projects."""

    qkv: Linear
    o: Linear
    prepare: Separate | Fused
    paged: PagedAttention

    def __call__(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        return self.o(self.paged.attend(self.prepare(self.qkv(x), batch), batch).flatten(1))
