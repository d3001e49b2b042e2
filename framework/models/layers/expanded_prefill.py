"""Prompts of latent attention in the expanded form: keys and values of the new tokens are made from their latents, head by head.

Over wide latents a query's score takes 3.4 times the operations (of DeepSeek-V3: 576 and 512 elements in place of 192 and 128).
So new tokens attend among themselves to keys and values of their own, which live in a workspace for one layer's time, and to
the tokens before them, of which the cache has latents only, in the absorbed form; ``merge_attention`` joins the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...plan import AttentionMeta, BoundKernel, LayerKV
from ..architecture import Latent
from .linear import Linear

_STEP = "expanded_prefill"


@dataclass(slots=True)
class _Step:
    """What the layers of a group share: where the new tokens lie in the workspace (pages follow each other, request by request, and
    page 0 has none), and what is in the cache before them; None if nothing can be."""

    new: AttentionMeta
    context: AttentionMeta | None
    slots: torch.Tensor | None = None


@dataclass(slots=True)
class ExpandedPrefill:
    """Attention of prompts, from queries and latents to values.

    expand    latents [T, kv_rank] -> keys without positions and values of all heads, side by side
    absorb, values   as ``LatentAttention`` has them
    write     kv_cache_write to the workspace
    among_new, over_context   paged_attention_prefill of expanded heads, causal, and of latents, not causal; both with the LSE
    """

    shape: Latent
    num_heads: int
    page_size: int
    expand: Linear
    absorb: BoundKernel
    values: BoundKernel
    write: BoundKernel
    among_new: BoundKernel
    over_context: BoundKernel
    merge: BoundKernel

    def begin_step(self, meta: AttentionMeta) -> None:
        """Once per step, by one layer of a group for all."""
        step = meta.workspace[_STEP] = self._plan(meta)
        self.among_new.begin_step(step.new)
        if step.context is not None:
            self.over_context.begin_step(step.context)

    def __call__(
        self, unrotated: torch.Tensor, rotated: torch.Tensor, latent: torch.Tensor, kv: LayerKV, meta: AttentionMeta
    ) -> torch.Tensor:
        """unrotated [T, H, nope_dim], rotated [T, H, rope_dim], latent [T, kv_rank + rope_dim] of the prompts' tokens, which are in
        the cache ``kv`` -> [T, H, value_dim]."""
        step, shape = meta.workspace[_STEP], self.shape
        joined = self.expand(latent[:, : shape.kv_rank]).unflatten(1, (self.num_heads, -1))
        keys, values = joined.split([shape.nope_dim, shape.value_dim], 2)
        position = latent[:, None, shape.kv_rank :].expand(-1, self.num_heads, -1)
        new = self._workspace(meta, latent.shape[0], latent.dtype)
        if step.slots is None:
            step.slots = self._slots(step.new, latent.shape[0])
        self.write(torch.cat((keys, position), 2), values, new, step.slots)
        out, lse = self.among_new(torch.cat((unrotated, rotated), 2), new, step.new)
        if step.context is None:
            return out
        seen, seen_lse = self.over_context(torch.cat((self.absorb(unrotated), rotated), 2), kv, step.context)
        return self.merge(out, lse, self.values(seen), seen_lse)[0]

    def _plan(self, meta: AttentionMeta) -> _Step:
        counts = torch.where(meta.seq_lens > 0, meta.cu_q.diff(), 0)
        pages = torch.arange(-(-meta.max_q // self.page_size), dtype=torch.int32, device=counts.device)
        table = self._first_pages(meta.cu_q)[:, None] + pages
        new = AttentionMeta(meta.cu_q, counts, table, meta.max_q, meta.max_q, meta.workspace)
        if meta.num_reqs == 1 and meta.max_seq_len <= meta.max_q:  # bounds of several requests are not those of one
            return _Step(new, None)
        before = meta.seq_lens - counts
        return _Step(new, AttentionMeta(meta.cu_q, before, meta.block_table, meta.max_q, meta.max_seq_len, meta.workspace))

    def _first_pages(self, cu_q: torch.Tensor) -> torch.Tensor:
        """int32 [R]: leaves room for every request's pages whatever the lengths."""
        return cu_q[:-1] // self.page_size + torch.arange(1, len(cu_q), dtype=torch.int32, device=cu_q.device)

    def _slots(self, new: AttentionMeta, num_tokens: int) -> torch.Tensor:
        """int64 [T]; -1 of tokens that are no request's."""
        tokens = torch.arange(num_tokens, device=new.cu_q.device)
        request = torch.searchsorted(new.cu_q[1:], tokens, right=True).clamp_max_(new.num_reqs - 1)
        slots = self._first_pages(new.cu_q)[request].long() * self.page_size + tokens - new.cu_q[request]
        return torch.where(tokens < new.cu_q[-1], slots, -1)

    def _workspace(self, meta: AttentionMeta, num_tokens: int, dtype: torch.dtype) -> LayerKV:
        num_pages = 1 << (num_tokens // self.page_size + meta.num_reqs + 1).bit_length()  # few shapes, whatever the batch
        parts = []
        for name, dim in (("expanded_keys", self.shape.query_dim), ("expanded_values", self.shape.value_dim)):
            sizes = (num_pages, self.page_size, self.num_heads, dim)
            memory = meta.scratch(name, num_pages * self.page_size * self.num_heads * dim, dtype)
            parts.append(memory[: num_pages * self.page_size * self.num_heads * dim].view(sizes))
        return LayerKV(*parts)
