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
    to. reduce: sums what ranks that share the layer's inputs have shrunk, so that all expand the same, and round what one process
    does; None: this rank has all inputs."""

    linear: Linear
    shrink: BoundKernel
    expand: BoundKernel
    step: LoraStep
    reduce: BoundKernel | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> [T, out]."""
        meta = self.step.meta
        if meta is None:
            return self.linear(x)
        shrunk = self.shrink(x, meta)  # before the layer: kernels of a CPU wait for one another at the end of that
        if self.reduce is not None:
            shrunk = self.reduce(shrunk)
        y = self.linear(x)
        self.expand(y, shrunk, meta)
        return y


@dataclass(slots=True)
class AdaptedEmbedding:
    """An embedding, or a rank's share of it, with the slots of its adapters.

    table  [slots, V, rank]: what A has for each token
    scale  float32 [slots, rank]
    share  of the vocabulary; None: all of it
    """

    embedding: BoundKernel
    table: torch.Tensor
    scale: torch.Tensor
    expand: BoundKernel
    step: LoraStep
    share: range | None = None

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [T] -> [T, H]."""
        y, meta = self.embedding(token_ids), self.step.meta
        if meta is not None:
            # Rows without an adapter (-1) find that of the last slot, which expand passes over.
            scale = self.scale[meta.index]
            if self.share is None:
                shrunk = self.table[meta.index, token_ids].float() * scale
            else:
                places = token_ids - self.share.start
                held = (places >= 0) & (places < len(self.share))
                shrunk = self.table[meta.index, torch.where(held, places, 0)].float() * scale * held[:, None]
            self.expand(y, shrunk, meta)
        return y
