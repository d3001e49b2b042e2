"""Self-attention over the paged cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...plan import BoundKernel
from ..batch import GroupBatch

if TYPE_CHECKING:
    from triton_kernels.attention_meta import LayerKV

Prepare = Callable[[torch.Tensor, torch.Tensor, "LayerKV", torch.Tensor], torch.Tensor]
"""(qkv [T, (Hq + 2 Hk) * D], positions, kv, slot_mapping) -> q [T, Hq, D], normalized and rotated; k and v go to the cache."""


@dataclass(slots=True)
class Separate:
    """What lies between the qkv projection and attention, one op after the other; the other way is ``qk_norm_rotary_kv_write``.

    q_norm, k_norm  rms_norm over each head, or None
    rotary          or None, if positions are learned
    heads           query heads, KV heads, KV heads: how the rows of qkv split
    """

    q_norm: BoundKernel | None
    k_norm: BoundKernel | None
    rotary: BoundKernel | None
    write: BoundKernel
    heads: list[int]
    head_dim: int

    def __call__(self, qkv: torch.Tensor, positions: torch.Tensor, kv: LayerKV, slot_mapping: torch.Tensor) -> torch.Tensor:
        """As ``Prepare``. q, k and v are views of qkv, which is rotated in place."""
        q, k, v = qkv.view(qkv.shape[0], -1, self.head_dim).split(self.heads, 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, None), self.k_norm(k, None)
        if self.rotary is not None:
            self.rotary(q, k, positions)
        self.write(k, v, kv, slot_mapping)
        return q


@dataclass(slots=True)
class Attention:
    """Projects, prepares (norms, rotation, write of the cache), attends, projects.

    qkv, o   linear
    prepare  ``Separate`` ops, or the bound kernel that fuses them
    """

    qkv: BoundKernel
    o: BoundKernel
    prepare: Prepare
    decode: BoundKernel
    prefill: BoundKernel

    def __call__(
        self, x: torch.Tensor, positions: torch.Tensor, num_decode_tokens: int, group: GroupBatch, kv: LayerKV
    ) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        q = self.prepare(self.qkv(x), positions, kv, group.slot_mapping)
        if group.prefill is None:
            out = self.decode(q, kv, group.decode)
        elif group.decode is None:
            out = self.prefill(q, kv, group.prefill)
        else:
            n = num_decode_tokens
            out = torch.cat((self.decode(q[:n], kv, group.decode), self.prefill(q[n:], kv, group.prefill)))
        return self.o(out.flatten(1))
