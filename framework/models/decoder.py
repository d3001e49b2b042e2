"""The native decoder: embedding, a list of layers, logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..plan import BoundKernel, LayerKV, LoraMeta
from .batch import ForwardBatch
from .expert_balancer import ExpertBalancer
from .layers.angles import MixedAngles
from .layers.block import Block, CrossBlock, HiddenAndResidual, PostNormBlock, PreNormBlock, kept_by
from .layers.experts import Lockstep, SpreadExperts
from .layers.linear import Linear, ReducedEmbedding
from .layers.mlp import MoeMlp
from .layers.visual_experts import VisualStep
from .lora.layers import AdaptedEmbedding
from .lora.slots import LoraSlots
from .paged_model import PagedModel
from .parallel import Ranks


class Decoder(PagedModel):
    """A model that the runner can step, or one stage of a pipeline.

    ``layers`` are those of this process; ``embed`` is None where an earlier stage embeds, ``lm_head`` where a later one
    projects. Stages pass (hidden, residual) on through the group of ``pp``.

    aux_layers  numbers of layers whose inputs a drafting head wants
    lockstep    of a step that several schedulers' ranks take together; None: this one's ranks are by themselves
    balancer    moves experts; None: they stay where they are
    mixed_angles  of its tables of angles, where tokens of images have three positions
    visual      what its visual experts look at, if it has some
    num_unscored  tokens behind the vocabulary that have an embedding, and no logit
    """

    def __init__(
        self,
        layers: list[Block],
        dtype: torch.dtype,
        vocab_size: int,
        max_model_len: int,
        *,
        hidden_size: int,
        embed: BoundKernel | AdaptedEmbedding | ReducedEmbedding | None,
        embed_scale: float | None,
        embed_norm: BoundKernel | None,
        project_in: Linear | None,
        position_embed: BoundKernel | None,
        token_types: BoundKernel | None,
        final_norm: BoundKernel | None,
        project_out: Linear | None,
        lm_head: Linear | None,
        logits_bias: torch.Tensor | None,
        logit_scale: float | None,
        logit_softcap: float | None,
        pp: Ranks,
        lora: LoraSlots | None = None,
        lockstep: Lockstep | None = None,
        balancer: ExpertBalancer | None = None,
        mixed_angles: tuple[MixedAngles, ...] = (),
        num_unscored: int = 0,
        visual: VisualStep | None = None,
    ) -> None:
        behind = [layer.cross for layer in layers if isinstance(layer, PreNormBlock | PostNormBlock) and layer.cross is not None]
        self._cross = behind + [layer.attention for layer in layers if isinstance(layer, CrossBlock)]
        super().__init__([kept_by(layer.attention) for layer in layers] + [cross.paged for cross in behind])
        self.layers, self.dtype, self.vocab_size, self.max_model_len = layers, dtype, vocab_size, max_model_len
        self.hidden_size, self.aux_layers, self._pp, self.lora = hidden_size, tuple[int, ...](), pp, lora
        self.is_last, self.num_unscored = pp.rank == pp.size - 1, num_unscored
        self.lockstep, self.balancer = lockstep, balancer
        self._embed, self._embed_scale, self._embed_norm = embed, embed_scale, embed_norm
        self._project_in, self._position_embed, self._token_types = project_in, position_embed, token_types
        self._final_norm, self._project_out, self._lm_head = final_norm, project_out, lm_head
        self._logit_scale, self._logit_softcap, self._mixed_angles = logit_scale, logit_softcap, mixed_angles
        self._logits_bias, self._visual = logits_bias, visual

    def begin_step(self, batch: ForwardBatch) -> None:
        super().begin_step(batch)
        if self.lora is not None and batch.lora is not None:
            self.lora.begin_step(batch.lora)
        if self._visual is not None:
            self._visual.tokens = None if batch.images is None else batch.images.experts
        if batch.mixed is not None:
            for angles in self._mixed_angles:
                angles.fill(batch.mixed)

    def embed(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        token_types: torch.Tensor | None = None,
        lora: LoraMeta | None = None,
    ) -> torch.Tensor:
        """token_ids, positions, token_types (None: all 0) int64 [T] -> [T, H]. lora: adapters of the tokens."""
        self._adapt(lora)
        x = self.embed_tokens(token_ids)
        if self._project_in is not None:
            x = self._project_in(x)
        if self._token_types is not None:
            x = x.add_(self._token_types(torch.zeros_like(token_ids) if token_types is None else token_types))
        if self._position_embed is not None:
            x = x.add_(self._position_embed(positions))
        if self._embed_norm is not None:
            x = self._embed_norm(x, None)
        return x

    def embed_tokens(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids int64 [T] -> [T, E], scaled."""
        assert self._embed is not None, "this process holds no embedding"
        x = self._embed(token_ids)
        return x if self._embed_scale is None else x.mul_(self._embed_scale)

    def store_encoded(self, encoded: torch.Tensor, caches: Mapping[int, LayerKV], slots: Mapping[int, torch.Tensor]) -> None:
        """What an encoder gave for a request, [S, H], becomes keys and values of every layer that attends to it. slots: int64 [S]
        of each KV group."""
        for cross in self._cross:
            cross.store(encoded, caches[cross.paged.layer], slots[cross.paged.group])

    def join(self, num_tokens: int, device: torch.device) -> None:
        """As ``Model.join``."""
        assert self.lockstep is not None
        self.lockstep.num_tokens = num_tokens
        none = torch.empty(0, self.hidden_size, dtype=self.dtype, device=device)
        for layer in self.layers:
            if isinstance(layer.mlp, MoeMlp) and isinstance(layer.mlp.experts, SpreadExperts):
                layer.mlp.experts.join(none)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Final hidden states [T, H] of a step; writes the cache. With ``aux_layers``, the states before these layers, residual
        added, stand beside it: [T, (1 + n) H]."""
        if self._pp.size > 1:
            return self._forward_stage(batch)
        x, aux = self.embed(batch.token_ids, batch.positions, batch.token_types, batch.lora), list[torch.Tensor]()
        if batch.images is not None:
            x.index_copy_(0, batch.images.tokens, batch.images.embeddings)
        if not self.aux_layers:
            return self.finish(*self.run_layers(x, None, batch))
        residual = None
        for index, layer in enumerate(self.layers):
            if index in self.aux_layers:
                aux.append(x.clone() if residual is None else x + residual)
            x, residual = layer(x, residual, batch)
        return torch.cat((self.finish(x, residual), *aux), dim=-1)

    def _forward_stage(self, batch: ForwardBatch) -> torch.Tensor:
        """Takes over from the stage before. Of the last stage the final hidden states; of others what they passed on to the next,
        without the residual, which nobody needs."""
        pp, residual = self._pp, None
        if pp.rank == 0:
            x = self.embed(batch.token_ids, batch.positions, batch.token_types, batch.lora)
        else:
            self._adapt(batch.lora)
            shape = (len(batch.positions), self.hidden_size)
            x, residual = (
                pp.group.recv(torch.empty(shape, dtype=self.dtype, device=batch.positions.device), pp.rank - 1) for _ in range(2)
            )
        x, residual = self.run_layers(x, residual, batch)
        if self.is_last:
            return self.finish(x, residual)
        pp.group.send(x.contiguous(), pp.rank + 1)
        pp.group.send(torch.zeros_like(x) if residual is None else residual.contiguous(), pp.rank + 1)  # post norms leave none
        return x

    def run_layers(self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch) -> HiddenAndResidual:
        """The layers of this process, from and to (hidden, residual)."""
        for layer in self.layers:
            x, residual = layer(x, residual, batch)
        return x, residual

    def finish(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """(hidden, residual) of the last layer -> final hidden states."""
        if self._final_norm is not None:
            return self._final_norm(x, residual)
        return x if residual is None else x.add_(residual)

    def logits(self, hidden: torch.Tensor, lora: LoraMeta | None = None) -> torch.Tensor:
        """hidden [R, H], or what ``forward`` returned, -> [R, V] in the model's dtype. lora: adapters of the rows."""
        assert self._lm_head is not None, "this process holds no logits projection"
        self._adapt(lora)
        if self.aux_layers:
            hidden = hidden[:, : self.hidden_size].contiguous()
        if self._project_out is not None:
            hidden = self._project_out(hidden)
        logits = self._lm_head(hidden)
        if self._logits_bias is not None:
            logits = logits.add_(self._logits_bias)
        if self._logit_scale is not None:
            logits = logits.mul_(self._logit_scale)
        if self._logit_softcap is not None:
            logits = torch.tanh(logits / self._logit_softcap) * self._logit_softcap
        return logits

    def _adapt(self, lora: LoraMeta | None) -> None:
        """What layers compute from now on are rows with these adapters."""
        if self.lora is not None:
            self.lora.step.meta = lora
