"""Attention over the paged cache, between its projections."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...plan import BoundKernel, LayerKV
from ..batch import ForwardBatch
from .linear import Linear
from .paged_attention import PagedAttention
from .qk_norm import QkNorm


@dataclass(slots=True)
class Separate:
    """What lies between the qkv projection and attention, one op after the other.

    q_norm, k_norm  or None; norm_rotated: after the rotation, not before it
    rotary          or None, if the layer does not rotate
    heads           query heads, KV heads, KV heads: how the rows of qkv split
    temperature     (positions, factor): queries are multiplied by 1 + factor * log(1 + floor((position + 1) / positions)); or None
    clip            all of qkv is kept within -clip and clip; None: as it is
    """

    q_norm: QkNorm | None
    k_norm: QkNorm | None
    rotary: BoundKernel | None
    paged: PagedAttention
    heads: list[int]
    head_dim: int
    clip: float | None = None
    norm_rotated: bool = False
    temperature: tuple[float, float] | None = None

    def __call__(self, qkv: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """qkv [T, (Hq + 2 Hk) * D] -> q [T, Hq, D], normalized and rotated; k and v go to the cache. q, k and v are views of qkv,
        which is rotated in place."""
        if self.clip is not None:
            qkv = qkv.clamp_(-self.clip, self.clip)
        q, k, v = qkv.view(qkv.shape[0], -1, self.head_dim).split(self.heads, 1)
        if not self.norm_rotated:
            q, k = self._normed(q, k)
        if self.rotary is not None:
            self.rotary(q, k, batch.positions)
        if self.norm_rotated:
            q, k = self._normed(q, k)
        if self.temperature is not None:
            every, factor = self.temperature
            steps = torch.floor((batch.positions.float() + 1) / every)
            q = (q * (1 + factor * torch.log1p(steps))[:, None, None]).to(q.dtype)
        self.paged.write(k, v, batch)
        return q

    def _normed(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)


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
    """Projects, prepares (norms, rotation, write of the cache), attends, projects. gated_dim: of the heads, each of which has its
    query and then a gate of its output in the first projection; None: there are no gates."""

    qkv: Linear
    o: Linear
    prepare: Separate | Fused
    paged: PagedAttention
    gated_dim: int | None = None

    def __call__(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        if self.gated_dim is None:
            return self.o(self.paged.attend(self.prepare(self.qkv(x), batch), batch).flatten(1))
        heads, keys = self.qkv(x).unflatten(-1, (-1, self.gated_dim)), 2 * self.paged.spec.num_kv_heads
        gates = torch.sigmoid(heads[:, 1:-keys:2])
        qkv = torch.cat((heads[:, :-keys:2], heads[:, -keys:]), 1).flatten(1)
        return self.o(self.paged.attend(self.prepare(qkv, batch), batch).mul_(gates).flatten(1))


@dataclass(slots=True)
class CrossAttention:
    """Attention to what an encoder gave. kv: of keys and values, which ``store`` makes once per request; q_norm, k_norm: None where
    there are none."""

    q: Linear
    kv: Linear
    o: Linear
    paged: PagedAttention
    q_norm: QkNorm | None = None
    k_norm: QkNorm | None = None

    def __call__(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """x [T, H] -> [T, H]; 0 of tokens that see nothing."""
        q = self.q(x).unflatten(1, (-1, self.paged.spec.head_dim))
        if self.q_norm is not None:
            q = self.q_norm(q)
        return self.o(self.paged.attend(q, batch).flatten(1))

    def store(self, encoded: torch.Tensor, cache: LayerKV, slots: torch.Tensor) -> None:
        """Keys and values of encoded [S, H] go to the slots int64 [S] of the layer's cache."""
        assert self.paged.kv_write is not None
        k, v = self.kv(encoded).unflatten(1, (2, -1, self.paged.spec.head_dim)).unbind(1)
        if self.k_norm is not None:
            k = self.k_norm(k)
        self.paged.kv_write(k, v, cache, slots)
