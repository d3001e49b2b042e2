"""What follows attention: a gated or plain MLP, or a mixture of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...plan import BoundKernel
from .experts import SpreadExperts
from .linear import Linear

_GELU_TANH = functools.partial(torch.nn.functional.gelu, approximate="tanh")
PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.nn.functional.relu,
    "relu2": lambda x: torch.nn.functional.relu(x).square_(),
    "silu": torch.nn.functional.silu,
    "swish": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_new": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
}


@dataclass(slots=True)
class Mlp:
    """down(activation(up(x))). A gated activation takes gate and up side by side: ``up`` is one linear for both."""

    up: Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        return self.down(self.activation(self.up(x)))


@dataclass(slots=True)
class SharedExperts:
    """Experts that serve every token, side by side as one MLP; with ``gate`` [T, H] -> [T, 1], weighted by its sigmoid."""

    mlp: Mlp
    gate: Linear | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        out = self.mlp(x)
        return out if self.gate is None else out.mul_(torch.sigmoid(self.gate(x)))


@dataclass(slots=True)
class MoeMlp:
    """A router sends each token to a few experts and adds up what they return, weighted; ``shared`` serve all."""

    router: Linear
    route: BoundKernel
    experts: BoundKernel | SpreadExperts
    shared: SharedExperts | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        weights, ids = self.route(self.router(x))
        out = self.experts(x, weights, ids)
        return out if self.shared is None else out.add_(self.shared(x))
