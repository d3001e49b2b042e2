"""What follows attention: a gated or plain MLP, or a mixture of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...plan import BoundKernel
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
class MoeMlp:
    """A router sends each token to a few experts and adds up what they return, weighted."""

    router: Linear
    route: BoundKernel
    experts: BoundKernel

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        weights, ids = self.route(self.router(x))
        return self.experts(x, weights, ids)
