"""Layers whose output low-rank adapters add to, each row's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...plan import BoundKernel, LoraMeta
from ..layers.linear import Linear


@dataclass(slots=True)
class LoraStep:
    """What is being computed. meta: the adapters of its rows; None: no row has one, and layers are what they are without."""

    meta: LoraMeta | None = None


@dataclass(slots=True)
class AdaptedLinear:
    """A linear layer, however its weights are stored, with the slots of its adapters, which ``shrink`` and ``expand`` are bound
    to. Of a rank that shares the layer's inputs, both are this rank's part of a sum."""

    linear: Linear
    shrink: BoundKernel
    expand: BoundKernel
    step: LoraStep

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> [T, out]."""
        y, meta = self.linear(x), self.step.meta
        if meta is not None:
            self.expand(y, self.shrink(x, meta), meta)
        return y


@dataclass(slots=True)
class AdaptedEmbedding:
    """An embedding, of a rank's share of the vocabulary from ``vocab_start`` on, with the slots of its adapters.

    table  [slots, V, rank]: what A has for each token
    scale  float32 [slots, rank]
    """

    embedding: BoundKernel
    table: torch.Tensor
    scale: torch.Tensor
    expand: BoundKernel
    step: LoraStep
    vocab_start: int = 0

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [T] -> [T, H]."""
        y, meta = self.embedding(token_ids), self.step.meta
        if meta is not None:
            slots, places = meta.index.clamp_min(0).long(), token_ids - self.vocab_start
            held = (places >= 0) & (places < self.table.shape[1])
            shrunk = self.table[slots, torch.where(held, places, 0)].float() * self.scale[slots]
            self.expand(y, shrunk * held[:, None], meta)
        return y
