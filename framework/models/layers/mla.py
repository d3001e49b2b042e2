"""Latent attention (MLA, DeepSeek-V2, arXiv 2405.04434): keys and values of all heads come from one latent vector per token.

The absorbed form: the up-projection of keys is multiplied into the queries, that of values into what attention returns, so that
all heads attend over the cached latents themselves, as multi-query attention whose values lie in its keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...plan import BoundKernel
from ..architecture import Latent
from ..batch import ForwardBatch
from .expanded_prefill import ExpandedPrefill
from .linear import Linear
from .paged_attention import PagedAttention


@dataclass(slots=True)
class LatentAttention:
    """Projects to queries and latents, writes those, attends over them, projects.

    qkv        [T, H] -> queries, or the latent that they come from, beside the latent of keys and values and the rotated part of
               the keys
    q_norm, q_b   from the latent of queries to queries; None where there is none
    kv_norm    of the latent of keys and values
    rotary     of the last ``rope_dim`` elements of queries and keys; the others know no positions
    absorb     head_linear: a query's unrotated part against keys -> against latents
    values     head_linear: from latents to values
    expanded   what prompts run through instead; None: the absorbed form
    """

    shape: Latent
    qkv: Linear
    q_norm: BoundKernel | None
    q_b: Linear | None
    kv_norm: BoundKernel
    rotary: BoundKernel
    absorb: BoundKernel
    values: BoundKernel
    o: Linear
    paged: PagedAttention
    expanded: ExpandedPrefill | None = None

    def __call__(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        shape, joined = self.shape, self.qkv(x)
        q, latent = joined.split([joined.shape[1] - shape.head_dim, shape.head_dim], 1)
        if self.q_norm is not None and self.q_b is not None:
            q = self.q_b(self.q_norm(q, None))
        unrotated, rotated = q.unflatten(1, (-1, shape.query_dim)).split([shape.nope_dim, shape.rope_dim], 2)
        latent[:, : shape.kv_rank] = self.kv_norm(latent[:, : shape.kv_rank], None)
        key = latent.unsqueeze(1)
        self.rotary(rotated, key[..., shape.kv_rank :], batch.positions)
        self.paged.write(key, None, batch)
        return self.o(self._attend(unrotated, rotated, latent, batch).flatten(1))

    def _attend(self, unrotated: torch.Tensor, rotated: torch.Tensor, latent: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """-> [T, num_heads, value_dim]."""
        group, kv = batch.groups[self.paged.group], batch.caches[self.paged.layer]
        if self.expanded is None or group.prefill is None:
            return self.values(self.paged.attend(torch.cat((self.absorb(unrotated), rotated), 2), batch))
        n = batch.num_decode_tokens
        prompts = self.expanded(unrotated[n:], rotated[n:], latent[n:], kv, group.prefill)
        if group.decode is None:
            return prompts
        queries = torch.cat((self.absorb(unrotated[:n]), rotated[:n]), 2)
        return torch.cat((self.values(self.paged.decode(queries, kv, group.decode)), prompts))
