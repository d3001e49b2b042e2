"""Layers that keep states in place of a cache: a short convolution, a recurrence, a gate, between two projections."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...engine.kv_cache.spec import State
from ...plan import BoundKernel, StateMeta
from ..batch import ForwardBatch
from ..mixers import GatedDelta, Mamba1, Mamba2
from .linear import Linear


@dataclass(slots=True)
class LayerStates:
    """The states of one layer. layer: its place among the layers of this process; spec: of what it keeps of a request."""

    layer: int
    spec: State

    def of(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor, StateMeta]:
        """The convolution's last inputs and the recurrence's state of every seat, and which of the seats are whose."""
        assert batch.states is not None, "a batch for a model with states has them"
        window, state = batch.states.layers[self.layer]
        return window, state, batch.states.meta


@dataclass(slots=True)
class Mamba1Mixer:
    """norms: of step sizes, b and c, or none of them."""

    shape: Mamba1
    states: LayerStates
    in_proj: Linear
    conv: BoundKernel
    x_proj: Linear
    norms: tuple[BoundKernel, ...]
    dt_proj: Linear
    scan: BoundKernel
    out_proj: Linear

    def __call__(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        (window, state, meta), size = self.states.of(batch), self.shape.state_size
        x, gate = self.in_proj(x).chunk(2, -1)
        x = self.conv(x, window, meta)
        parts = self.x_proj(x).split([self.shape.step_rank, size, size], -1)
        if self.norms:
            parts = tuple(norm(part.contiguous(), None) for norm, part in zip(self.norms, parts, strict=True))
        dt, b, c = parts
        return self.out_proj(self.scan(x, self.dt_proj(dt.contiguous()), b, c, gate, state, meta))


@dataclass(slots=True)
class Mamba2Mixer:
    """Heads with one decay each; b and c are shared by groups of them."""

    shape: Mamba2
    states: LayerStates
    in_proj: Linear
    conv: BoundKernel
    scan: BoundKernel
    norm: BoundKernel
    out_proj: Linear

    def __call__(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        (window, state, meta), m = self.states.of(batch), self.shape
        gate, xbc, dt = self.in_proj(x).split([m.num_channels, sum(m.conv_pieces), m.num_heads], -1)
        x, b, c = self.conv(xbc, window, meta).split(m.conv_pieces, -1)
        x, b, c = x.unflatten(-1, (-1, m.head_dim)), *(rows.unflatten(-1, (-1, m.state_size)) for rows in (b, c))
        return self.out_proj(self.norm(self.scan(x, dt, b, c, state, meta).flatten(1), gate))


@dataclass(slots=True)
class GatedDeltaMixer:
    """A gated delta net, whose every head has its output normalized and gated."""

    shape: GatedDelta
    states: LayerStates
    in_proj: Linear
    gates_proj: Linear
    conv: BoundKernel
    rule: BoundKernel
    norm: BoundKernel
    out_proj: Linear

    def __call__(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        (window, state, meta), m = self.states.of(batch), self.shape
        qkv, gate = self.in_proj(x).split([sum(m.conv_pieces), m.conv_pieces[-1]], -1)
        rate, decay = self.gates_proj(x).split(m.num_v_heads, -1)
        q, k, v = self.conv(qkv, window, meta).split(m.conv_pieces, -1)
        q, k = (rows.unflatten(-1, (-1, m.k_dim)) for rows in (q, k))
        out = self.rule(q, k, v.unflatten(-1, (-1, m.v_dim)), decay, rate, state, meta)
        return self.out_proj(self.norm(out, gate.unflatten(-1, (-1, m.v_dim))).flatten(1))


AnyMixer = Mamba1Mixer | Mamba2Mixer | GatedDeltaMixer
