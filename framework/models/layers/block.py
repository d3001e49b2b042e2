"""The residual topologies: how attention, MLP and norms make a layer. Each exchanges (hidden, residual).

The sum of the residual stream and a sub-layer's output is left to the next norm, which adds and normalizes in one kernel:
between layers the state of the model is ``hidden + residual`` (``hidden`` alone where residual is None).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...plan import BoundKernel
from ..batch import ForwardBatch
from .attention import Attention, CrossAttention
from .mixers import AnyMixer, LayerStates
from .mla import LatentAttention
from .paged_attention import PagedAttention

AnyAttention = Attention | LatentAttention | CrossAttention | AnyMixer


def kept_by(attention: AnyAttention) -> PagedAttention | LayerStates:
    """Where a layer has what it keeps between steps."""
    return attention.states if isinstance(attention, AnyMixer) else attention.paged


Mlp = Callable[[torch.Tensor], torch.Tensor]
HiddenAndResidual = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(slots=True)
class PreNormBlock:
    """x + attention(norm(x)), then x + mlp(norm(x)); with post norms, what is added is normalized too, and with ``scale``
    multiplied. attn_norm: None for a first layer whose input is normalized. cross: between the two, x + cross(norm(x))."""

    attention: AnyAttention
    mlp: Mlp
    mlp_norm: BoundKernel
    attn_norm: BoundKernel | None = None
    attn_post_norm: BoundKernel | None = None
    mlp_post_norm: BoundKernel | None = None
    scale: float | None = None
    cross: CrossAttention | None = None
    cross_norm: BoundKernel | None = None

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch) -> HiddenAndResidual:
        if self.attn_norm is None:
            assert residual is None, "only a first layer comes without a norm"
            residual = x
        elif residual is None:
            residual, x = x, self.attn_norm(x, None)
        else:
            x = self.attn_norm(x, residual)
        x = self.attention(x, batch)
        if self.attn_post_norm is not None:
            x = self.attn_post_norm(x, None)
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross(self.cross_norm(x, residual), batch)
        x = self.mlp(self.mlp_norm(self._scaled(x), residual))
        if self.mlp_post_norm is not None:
            x = self.mlp_post_norm(x, None)
        return self._scaled(x), residual

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.scale is None else x.mul_(self.scale)


@dataclass(slots=True)
class ParallelBlock:
    """x + attention(norm(x)) + mlp(norm'(x)); without a second norm the first serves both."""

    attention: AnyAttention
    mlp: Mlp
    attn_norm: BoundKernel
    mlp_norm: BoundKernel | None = None

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch) -> HiddenAndResidual:
        if residual is None:
            residual, x = x, self.attn_norm(x, None)
        else:
            x = self.attn_norm(x, residual)
        attended = self.attention(x, batch)
        if self.mlp_norm is not None:
            x = self.mlp_norm(residual, None)
        return attended.add_(self.mlp(x)), residual


@dataclass(slots=True)
class AfterNormBlock:
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    attention: AnyAttention
    mlp: Mlp
    attn_post_norm: BoundKernel
    mlp_post_norm: BoundKernel

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch) -> HiddenAndResidual:
        x = x if residual is None else residual.add_(x)
        x = x.add_(self.attn_post_norm(self.attention(x, batch), None))
        return self.mlp_post_norm(self.mlp(x), None), x


@dataclass(slots=True)
class PostNormBlock:
    """norm(x + attention(x)), then norm(x + mlp(x)). cross: between the two, norm(x + cross(x))."""

    attention: AnyAttention
    mlp: Mlp
    attn_norm: BoundKernel
    mlp_norm: BoundKernel
    cross: CrossAttention | None = None
    cross_norm: BoundKernel | None = None

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch) -> HiddenAndResidual:
        x = self.attn_norm(self.attention(x, batch), x)
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(self.cross(x, batch), x)
        return self.mlp_norm(self.mlp(x), x), None


@dataclass(slots=True)
class MixerBlock:
    """x + mixer(norm(x)): there is no MLP."""

    attention: AnyAttention
    attn_norm: BoundKernel
    mlp: None = None

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch) -> HiddenAndResidual:
        if residual is None:
            residual, x = x, self.attn_norm(x, None)
        else:
            x = self.attn_norm(x, residual)
        return self.attention(x, batch), residual


@dataclass(slots=True)
class CrossBlock:
    """x + gate * cross(norm(x)), then x + mlp_gate * mlp(norm(x)): it attends to images alone, and tokens that see none pass as
    they are. gate, mlp_gate: [1]."""

    attention: CrossAttention
    mlp: Mlp
    attn_norm: BoundKernel
    mlp_norm: BoundKernel
    gate: torch.Tensor
    mlp_gate: torch.Tensor

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch) -> HiddenAndResidual:
        if residual is None:
            residual, x = x, self.attn_norm(x, None)
        else:
            x = self.attn_norm(x, residual)
        x = self.attention(x, batch).mul_(self.gate)
        x = self.mlp(self.mlp_norm(x, residual)).mul_(self.mlp_gate)
        blind = batch.groups[self.attention.paged.group].blind
        return x if blind is None else x.masked_fill_(blind, 0.0), residual


Block = PreNormBlock | ParallelBlock | AfterNormBlock | PostNormBlock | MixerBlock | CrossBlock
