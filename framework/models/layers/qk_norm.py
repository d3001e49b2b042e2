"""Norms of queries and keys, between their projection and attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...plan import BoundKernel

QkNorm = Callable[[torch.Tensor], torch.Tensor]
"""[T, H, D] -> [T, H, D], fresh."""


@dataclass(slots=True)
class HeadNorm:
    """Each head by itself, all with one weight."""

    kernel: BoundKernel

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return self.kernel(heads, None)


@dataclass(slots=True)
class HeadsNorm:
    """Each head by itself, with a weight of its own. kernel: without weights; weight [H, D]."""

    kernel: BoundKernel
    weight: torch.Tensor

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return self.kernel(heads, None).mul_(self.weight)


@dataclass(slots=True)
class WidthNorm:
    """All heads of a token as one vector."""

    kernel: BoundKernel

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return self.kernel(heads.flatten(1), None).view(heads.shape)


@dataclass(slots=True)
class GatheredWidthNorm:
    """The same where ranks share the heads; ``copies`` ranks after another have the same ones. own: this rank's elements of all."""

    kernel: BoundKernel
    gather: BoundKernel
    copies: int
    own: range

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        mine = heads.flatten(1)
        everything = self.gather(mine).unflatten(1, (-1, self.copies, mine.shape[1]))[:, :, 0].flatten(1)
        return self.kernel(everything, None)[:, self.own.start : self.own.stop].reshape(heads.shape)
