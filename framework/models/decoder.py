"""The native decoder: embedding, a list of layers, logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..engine.kv_cache.spec import CacheGroup, PagedKV
from ..plan import BoundKernel
from .batch import ForwardBatch
from .layers.block import Block

if TYPE_CHECKING:
    from triton_kernels.attention_meta import LayerKV


class Decoder:
    """A model that the runner can step.

    ``layers`` are those of this process; ``embed`` is None where an earlier stage embeds, ``lm_head`` where a later one
    projects. ``specs``: what each layer keeps in the cache.
    """

    def __init__(
        self,
        layers: list[Block],
        specs: list[PagedKV],
        dtype: torch.dtype,
        vocab_size: int,
        max_model_len: int,
        *,
        embed: BoundKernel | None,
        embed_scale: float | None,
        project_in: BoundKernel | None,
        position_embed: BoundKernel | None,
        final_norm: BoundKernel | None,
        project_out: BoundKernel | None,
        lm_head: BoundKernel | None,
        logit_softcap: float | None,
    ) -> None:
        self.layers, self.dtype, self.vocab_size, self.max_model_len = layers, dtype, vocab_size, max_model_len
        self._specs = specs
        self._embed, self._embed_scale, self._project_in, self._position_embed = embed, embed_scale, project_in, position_embed
        self._final_norm, self._project_out, self._lm_head, self._logit_softcap = final_norm, project_out, lm_head, logit_softcap
        self.layer_groups = [0] * len(layers)
        self._first_layers = [0]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def cache_specs(self) -> list[PagedKV]:
        """One per layer."""
        return self._specs

    def set_groups(self, groups: tuple[CacheGroup, ...]) -> None:
        """Tells which KV group serves which layer."""
        for index, group in enumerate(groups):
            for layer in group.layers:
                self.layer_groups[layer] = index
        self._first_layers = [group.layers[0] for group in groups]

    def begin_step(self, batch: ForwardBatch) -> None:
        """Once per step, before ``forward``: lets attention prepare what the layers of a group share."""
        for group, layer in zip(batch.groups, self._first_layers):
            attention = self.layers[layer].attention
            if group.decode is not None:
                attention.decode.begin_step(group.decode)
            if group.prefill is not None:
                attention.prefill.begin_step(group.prefill)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """token_ids, positions int64 [T] -> [T, H]."""
        assert self._embed is not None, "this process holds no embedding"
        x = self._embed(token_ids)
        if self._embed_scale is not None:
            x = x.mul_(self._embed_scale)
        if self._project_in is not None:
            x = self._project_in(x)
        if self._position_embed is not None:
            x = x.add_(self._position_embed(positions))
        return x

    def forward(self, batch: ForwardBatch, caches: list[LayerKV]) -> torch.Tensor:
        """Final hidden states [T, H] of a step; writes the cache. caches: one per layer."""
        return self.finish(*self.run_layers(self.embed(batch.token_ids, batch.positions), None, batch, caches))

    def run_layers(
        self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch, caches: list[LayerKV]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layers of this process, from and to (hidden, residual)."""
        groups = batch.groups
        for layer, group, kv in zip(self.layers, self.layer_groups, caches):
            x, residual = layer(x, residual, batch, groups[group], kv)
        return x, residual

    def finish(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """(hidden, residual) of the last layer -> final hidden states."""
        if self._final_norm is not None:
            return self._final_norm(x, residual)
        return x if residual is None else x.add_(residual)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [R, H] -> [R, V] in the model's dtype."""
        assert self._lm_head is not None, "this process holds no logits projection"
        if self._project_out is not None:
            hidden = self._project_out(hidden)
        logits = self._lm_head(hidden)
        if self._logit_softcap is not None:
            logits = torch.tanh(logits / self._logit_softcap) * self._logit_softcap
        return logits
